"""Boundary states in files: the same gradient, nothing left behind, and an update that was killed is taken up again."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from support.models import make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream
from torch import nn

import streamseq as ss
from streamseq.tbptt import boundaries, records


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def always(monkeypatch):
    """Progress is saved at every opportunity, in small files."""
    monkeypatch.setattr(records, "SECONDS", 0.0)
    monkeypatch.setattr(boundaries, "_GROUP_BYTES", 20_000)


class Noisy(nn.Module):
    """Has dropout and a buffer that matters; may fail in one of its calls."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x, state):
        self.calls += 1
        if self.calls == self.fails_at:
            raise InterruptedError("pulled the plug")
        self.seen += x.shape[1]
        y, state = self.rnn(self.drop(x), state)
        return self.drop(y).sum(-1) / (1 + self.seen / 50), state


def noisy(fails_at=None):
    torch.manual_seed(0)
    model = Noisy(fails_at).double()
    torch.manual_seed(1)
    return model


@pytest.mark.parametrize("memory", [0, 5_200, "1MB"])
@pytest.mark.parametrize(("k1", "k2"), [(None, None), (8, None), (8, 40)])
def test_states_in_files_give_the_same_gradients(temporary, monkeypatch, memory, k1, k2):
    monkeypatch.setattr(boundaries, "_GROUP_BYTES", 300)
    stream = make_stream([120, 120], lanes=2, window=8)
    written = []
    write_group = boundaries.Spill.write_group
    monkeypatch.setattr(boundaries.Spill, "write_group", lambda s, *a: (written.append(a[0]), write_group(s, *a)))
    wanted = engine_updates(make("lstm"), stream, k1, k2, segment=4)
    assert not written
    torch.manual_seed(1)
    got = engine_updates(make("lstm"), stream, k1, k2, segment=4, boundary_memory=memory)
    assert_same(got, wanted, 0)
    assert bool(written) == (memory != "1MB")
    assert not any(temporary.iterdir())


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("memory", [0, 5_200, "1MB"])
def test_files_that_last_give_the_same_gradients_however_often_progress_is_saved(
    tmp_path, monkeypatch, memory, seconds
):
    monkeypatch.setattr(boundaries, "_GROUP_BYTES", 300)
    monkeypatch.setattr(records, "SECONDS", seconds)
    stream = make_stream([120, 120], lanes=2, window=8)
    wanted = engine_updates(make("lstm"), stream, None, None, segment=4)
    options = {"segment": 4, "boundary_memory": memory, "spill_to": tmp_path}
    assert_same(engine_updates(make("lstm"), stream, None, None, **options), wanted, 0)
    assert not any(tmp_path.iterdir())


def test_noise_and_buffers_go_through_files(temporary):
    stream = make_stream([80], lanes=1, window=8)
    results = []
    for memory in ("1MB", 0):
        model = noisy()
        results.append(engine_updates(model, stream, None, None, segment=4, boundary_memory=memory))
        results.append((int(model.seen), torch.get_rng_state().tolist()))
    assert_same(results[0], results[2], 0)
    assert results[1] == results[3]


def test_what_fails_leaves_no_temporary_files(temporary):
    stream = make_stream([80], lanes=1, window=8)
    with pytest.raises(InterruptedError):
        engine_updates(noisy(fails_at=30), stream, None, None, segment=4, boundary_memory=0)
    assert not any(temporary.iterdir())


def count_calls(stream):
    model = noisy()
    wanted = engine_updates(model, stream, None, None, segment=4)
    return model.calls, wanted, (int(model.seen), torch.get_rng_state())


@pytest.mark.parametrize("memory", [0, "1MB"])
def test_an_update_that_was_killed_is_taken_up_again(tmp_path, always, memory):
    """Wherever it was killed, forward or backward: the same gradient to the last bit, and less work."""
    stream = make_stream([64], lanes=1, window=8)
    calls, wanted, after = count_calls(stream)
    assert calls == 31
    folder = tmp_path / "sweep"
    options = {"segment": 4, "boundary_memory": memory, "spill_to": folder}
    for fails_at in range(1, calls + 1):
        model = noisy(fails_at)
        with pytest.raises(InterruptedError):
            engine_updates(model, stream, None, None, **options)
        assert folder.exists()
        again = noisy()
        got = engine_updates(again, stream, None, None, **options)
        assert_same(got, wanted, 0)
        assert (int(again.seen), torch.get_rng_state().tolist()) == (after[0], after[1].tolist())
        # A few segments are run again, not all.
        assert again.calls <= calls - fails_at + 5
        assert not any(folder.iterdir())


def test_it_may_be_killed_again_and_again(tmp_path, always):
    stream = make_stream([64], lanes=1, window=8)
    _, wanted, _ = count_calls(stream)
    options = {"segment": 4, "boundary_memory": 0, "spill_to": tmp_path}
    attempts, got = 0, None
    while got is None:
        attempts += 1
        try:
            got = engine_updates(noisy(fails_at=6), stream, None, None, **options)
        except InterruptedError:
            assert attempts < 100
    assert attempts > 5
    assert_same(got, wanted, 0)


def test_another_model_or_stream_begins_anew(tmp_path, always):
    stream = make_stream([64], lanes=1, window=8)
    options = {"segment": 4, "boundary_memory": 0, "spill_to": tmp_path}
    for change in ("parameters", "stream", "segment"):
        with pytest.raises(InterruptedError):
            engine_updates(noisy(fails_at=28), stream, None, None, **options)
        model = noisy()
        if change == "parameters":
            with torch.no_grad():
                model.rnn.weight_hh_l0 += 0.25
        other = make_stream([60], lanes=1, window=8) if change == "stream" else stream
        more = {**options, "segment": 5 if change == "segment" else 4}
        state = {name: value.clone() for name, value in model.state_dict().items()}
        got = engine_updates(model, other, None, None, **more)
        fresh = noisy()
        fresh.load_state_dict(state)
        assert_same(got, engine_updates(fresh, other, None, None, segment=more["segment"]), 0)
        assert model.calls == fresh.calls


def test_each_epoch_and_cohort_has_files_of_its_own(tmp_path, always):
    stream = make_stream([16, 16, 24, 24, 8, 8], lanes=2, window=8)
    wanted = engine_updates(make("gru"), stream, None, None, segment=4)
    assert len(wanted) == 3
    seen = []
    model = make("gru")
    tbptt = ss.TBPTT(model, squared_error, k1=None, k2=None, segment=4, spill_to=tmp_path)

    def updates():
        for update in tbptt.updates(stream):
            seen.append(sorted(path.name for path in tmp_path.rglob("*") if path.is_file()))
            yield update

    assert_same(collect(model, updates()), wanted, 0)
    assert all("sweep.json" in names for names in seen)
    assert not any(tmp_path.iterdir())


def test_a_damaged_file_is_found(tmp_path, always):
    stream = make_stream([64], lanes=1, window=8)
    options = {"segment": 4, "boundary_memory": 0, "spill_to": tmp_path}
    for pattern, fails_at in (("states-*.pt", 28), ("progress.pt", 28)):
        with pytest.raises(InterruptedError):
            engine_updates(noisy(fails_at), stream, None, None, **options)
        path = max(tmp_path.rglob(pattern))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ss.CorruptionError, match="remove the folder"):
            engine_updates(noisy(), stream, None, None, **options)
        for left in tmp_path.rglob("*.*"):
            left.unlink()


def test_an_update_that_was_delivered_leaves_nothing(tmp_path, always):
    """The loop is left after it, and the next run with other losses has gradients of its own."""
    stream = make_stream([64], lanes=1, window=8)
    options = {"k1": None, "k2": None, "segment": 4, "spill_to": tmp_path}
    for update in ss.TBPTT(noisy(), squared_error, **options).updates(stream):
        before = update.loss.item()
        break
    assert not any(tmp_path.iterdir())
    (update,) = ss.TBPTT(noisy(), lambda y, w: 5 * squared_error(y, w), **options).updates(stream)
    assert update.loss.item() == pytest.approx(5 * before)


def test_functions_must_name_their_parameters(tmp_path):
    model = make("gru")
    tbptt = ss.TBPTT(lambda x, s: model(x, s), squared_error, k1=None, k2=None, spill_to=tmp_path)
    with pytest.raises(ValueError, match="pass parameters="):
        next(tbptt.updates(make_stream([16], lanes=1, window=8)))


KILLED = """
import os, signal, sys
sys.path.insert(0, {support!r})
import torch
from support.updates import engine_updates, make_stream
from streamseq.tbptt import records
sys.path.insert(0, {here!r})
from test_spill import noisy

records.SECONDS = 0.0
model = noisy()
number = int(sys.argv[1])
model.register_forward_pre_hook(lambda m, i: os.kill(os.getpid(), signal.SIGKILL) if m.calls == number else None)
stream = make_stream([64], lanes=1, window=8)
got = engine_updates(model, stream, None, None, segment=4, boundary_memory=0, spill_to={folder!r})
torch.save((got, model.calls), {out!r})
"""


def test_a_process_that_is_killed_leaves_what_another_one_takes_up(tmp_path):
    here = Path(__file__).parent
    folder, out = tmp_path / "sweep", tmp_path / "got.pt"
    code = KILLED.format(support=str(here.parent), here=str(here), folder=str(folder), out=str(out))
    first = subprocess.run([sys.executable, "-c", code, "25"], env=os.environ, check=False)
    assert first.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", code, "-1"], env=os.environ, check=True)
    got, calls = torch.load(out, weights_only=True)
    whole, wanted, _ = count_calls(make_stream([64], lanes=1, window=8))
    assert_same(got, wanted, 0)
    assert calls < whole / 2
    assert not any(folder.iterdir())
