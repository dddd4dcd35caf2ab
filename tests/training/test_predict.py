"""Streaming inference: the outputs of each sequence alone, aligned, whatever the lanes, and resumable."""

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, make
from torch import nn

import streamseq as ss
from streamseq.storage.layout import plan_layout
from streamseq.training.predict_job import Job
from streamseq.training.predict_plan import plan_tasks
from streamseq.training.predict_task import PredictionEndedError
from streamseq.training.predict_writer import GroupWriter

LENGTHS = (0, 37, 5, 100, 64, 1, 0, 77, 128, 3, 19, 50)
SMALL = {"chunk_bytes": 256, "shard_bytes": 512}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def floats(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    arrays = {f"s{i}": {"x": rng.standard_normal((n, 2))} for i, n in enumerate(lengths)}
    return ss.from_arrays(arrays, attrs={"s3": {"site": "north"}})


def numbers(lengths=LENGTHS):
    """Every value is another one, so that a timestep in the wrong place shows."""
    ends = np.cumsum(lengths)
    return ss.from_arrays(
        {f"s{i}": {"x": np.arange(e - n, e)} for i, (n, e) in enumerate(zip(lengths, ends, strict=True))}
    )


class Sum(nn.Module):
    """The sum of all values so far, in exact arithmetic; `calls` counts, `fail_at` fails."""

    def __init__(self, fail_at=None, error=RuntimeError):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def forward(self, x, state):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error("enough")
        total = x.cumsum(1) + (0 if state is None else state[:, None])
        return total, total[:, -1]


class Slow(Sum):
    def forward(self, x, state):
        time.sleep(0.03)
        return super().forward(x, state)


class OneFails(Sum):
    """It fails on values below 64, when others were begun, and takes its time with those."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def forward(self, x, state):
        if x.max() < 64:
            deadline = time.monotonic() + 60
            while not self.marker.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise RuntimeError("enough")
        self.marker.touch()
        time.sleep(0.1)
        return super().forward(x, state)


class Deadly(Sum):
    def forward(self, x, state):
        os._exit(1)


def alone(model, values):
    with torch.no_grad():
        initial = model.initial_state(1) if hasattr(model, "initial_state") else None
        return model(torch.from_numpy(values)[None], initial)[0][0].numpy()


def check_sums(uri, store):
    found = ss.open(uri)
    assert found.ids.to_pylist() == store.ids.to_pylist()
    assert found.lengths.tolist() == store.lengths.tolist()
    for index in range(len(store)):
        assert found.read(index)["y"].tolist() == np.cumsum(store.read(index)["x"]).tolist()
    assert found.num_timesteps == store.num_timesteps


def below(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("lanes", "window", "backend"), [(3, 16, "zarr"), (20, 7, "arrow"), (1, 50, "zarr")])
def test_the_outputs_are_those_of_each_sequence_alone(tmp_path, name, lanes, window, backend):
    model, store = make(name), floats()
    report = ss.predict(model, store, tmp_path / "y", lanes=lanes, window=window, backend=backend, **SMALL)
    found = ss.open(tmp_path / "y")
    assert (report.sequences, report.timesteps, report.version) == (12, sum(LENGTHS), 1)
    assert report.fields == {"y": "float64"}
    assert found.backend == backend
    assert found.ids.to_pylist() == store.ids.to_pylist()
    assert found.lengths.tolist() == list(LENGTHS)
    assert [found.attrs(index) for index in range(12)] == [store.attrs(index) for index in range(12)]
    for index in np.flatnonzero(LENGTHS).tolist():
        wanted = alone(model, store.read(index)["x"])
        np.testing.assert_allclose(found.read(index)["y"], wanted, rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    lanes=st.integers(1, 6),
    window=st.integers(1, 20),
    shard_bytes=st.integers(8, 800),
    backend=st.sampled_from(["zarr", "arrow"]),
)
def test_every_timestep_is_where_it_belongs(tmp_path_factory, lengths, lanes, window, shard_bytes, backend):
    uri, store = tmp_path_factory.mktemp("p") / "y", numbers(lengths)
    cut = {"chunk_bytes": 64, "shard_bytes": shard_bytes}
    ss.predict(Sum(), store, uri, lanes=lanes, window=window, backend=backend, **cut)
    check_sums(uri, store)


@given(
    lengths=st.lists(st.integers(0, 300), max_size=40),
    lanes=st.integers(1, 9),
    shard_bytes=st.integers(1, 2000),
    chunk_timesteps=st.integers(1, 300),
)
def test_tasks_have_every_sequence_once_and_one_for_each_lane(lengths, lanes, shard_bytes, chunk_timesteps):
    lengths = np.array(lengths, np.int64)
    cut = {"step_bytes": 4, "shard_bytes": shard_bytes, "chunk_timesteps": chunk_timesteps}
    tasks = plan_tasks(lengths, lanes=lanes, **cut)
    taken = [index for task in tasks for index in task.tolist()]
    assert sorted(taken) == np.flatnonzero(lengths).tolist()
    assert all(len(task) >= lanes for task in tasks) or len(tasks) == 1
    for task in tasks:
        # Without its last sequence, or those beyond the first for each lane, it does not fill a shard.
        assert len(task) < 2 * lanes or lengths[task[:-lanes]].sum() * 4 < max(shard_bytes, 4) + 4


def test_each_sequence_lies_in_one_piece_and_a_long_one_in_shards_of_its_own(tmp_path):
    store = numbers((40, 500, 3, 30, 700, 20, 10))
    ss.predict(Sum(), store, tmp_path / "y.zarr", lanes=4, window=16, chunk_bytes=256, shard_bytes=1024)
    found = ss.open(tmp_path / "y.zarr")
    (tables,) = found.snapshot.tables
    assert tables.pieces.num_rows == len(store)
    full = 1024 // 8
    sizes = [shard.num_timesteps for shard in found.snapshot.shards]
    assert sizes == [full] * 3 + [500 - 3 * full] + [full] * 5 + [700 - 5 * full] + [103]
    check_sums(tmp_path / "y.zarr", store)


@pytest.mark.parametrize("kind", ["long", "short"])
def test_memory_does_not_grow_with_what_is_written(tmp_path, kind):
    fields = {"y": ss.Field("int64", (8,))}
    layout = plan_layout(fields, "zarr", chunk_bytes=1 << 14, shard_bytes=1 << 17)
    peaks = []
    for number, times in enumerate((2, 16)):
        # Long ones fill many shards, of short ones there are many.
        lengths = np.full(*((3, 10_000 * times) if kind == "long" else (30 * times, 1_000)), np.int64)
        ids = [f"{index}" for index in range(len(lengths))]
        values = {"y": np.zeros((250, 8), np.int64)}
        tracemalloc.start()
        with GroupWriter(tmp_path / f"{number}", layout, ids, lengths, tmp_path, lambda writer: None) as writer:
            for start in range(0, int(lengths[0]), 250):
                for sequence in range(len(lengths)):
                    writer.write(sequence, start, values)
            writer.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    written = 64 * lengths.sum()
    assert peaks[1] < 1.2 * peaks[0] + written / 100
    assert peaks[1] < written / 10


def test_a_dict_of_outputs_is_fields_by_name(tmp_path):
    class Two(Sum):
        def forward(self, x, state):
            total, state = super().forward(x, state)
            return {"total": total, "both": torch.stack([x, total], -1).float(), "even": total % 2 == 0}, state

    store = numbers()
    report = ss.predict(Two(), store, tmp_path / "y.arrow", lanes=3, window=9)
    assert report.fields == {"total": "int64", "both": "float32[2]", "even": "bool"}
    read = ss.open(tmp_path / "y.arrow").read("s8")
    total = np.cumsum(store.read("s8")["x"])
    assert read["total"].tolist() == total.tolist()
    assert read["both"].tolist() == np.stack([store.read("s8")["x"], total], -1).tolist()
    assert read["even"].tolist() == (total % 2 == 0).tolist()


def test_a_function_makes_the_outputs_and_sees_the_window(tmp_path):
    def outputs(total, window):
        next_one = torch.where(window.mask, window["next"], -1)
        return {"half": total.half(), "brain": total.bfloat16(), "left": next_one - window["x"]}

    store = numbers((5, 9))
    report = ss.predict(
        Sum(), store, tmp_path / "y.zarr", outputs=outputs, lookahead={"next": ("x", 1)}, lanes=2, window=4
    )
    assert report.fields == {"half": "float16", "brain": "float32", "left": "int64"}
    read = ss.open(tmp_path / "y.zarr").read("s1")
    assert read["left"].tolist() == [1] * 8 + [-1 - 13]
    total = torch.from_numpy(np.cumsum(store.read("s1")["x"]))
    assert read["half"].tolist() == total.half().tolist()
    assert read["brain"].tolist() == total.bfloat16().tolist()


def test_inputs_are_several_fields_or_a_function(tmp_path):
    class Product(nn.Module):
        def forward(self, inputs, state):
            a, b = inputs
            return a * b, None

    store = ss.from_arrays({f"{n}": {"a": np.arange(n), "b": np.arange(n) + 7, "c": np.ones(n)} for n in (4, 30)})
    ss.predict(Product(), store, tmp_path / "1.zarr", inputs=["a", "b"], lanes=2, window=8)
    ss.predict(Product(), store, tmp_path / "2.zarr", inputs=lambda w: (w["a"], w["b"]), lanes=2, window=8)
    for name in ("1.zarr", "2.zarr"):
        n = np.arange(30)
        assert ss.open(tmp_path / name).read("30")["y"].tolist() == (n * (n + 7)).tolist()


def test_a_subset_has_the_order_in_which_it_is_named(tmp_path):
    store = numbers()
    ss.predict(Sum(), store, tmp_path / "y.zarr", sequences=["s8", "s6", "s1", "s4"], lanes=2, window=9, **SMALL)
    found = ss.open(tmp_path / "y.zarr")
    assert found.ids.to_pylist() == ["s8", "s6", "s1", "s4"]
    assert found.lengths.tolist() == [128, 0, 37, 64]
    assert found.read("s1")["y"].tolist() == np.cumsum(store.read("s1")["x"]).tolist()


class Disturbed(nn.Module):
    """It counts calls in a buffer, draws noise, and says whether it trains."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x, state):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += 1
        return self.dropout(x.float()) * torch.rand(x.shape) + self.seen, None


def test_modes_buffers_and_random_generators_stay_as_they_were(tmp_path):
    model, store = Disturbed(), numbers()
    before = torch.get_rng_state()
    ss.predict(model, store, tmp_path / "a.zarr", lanes=2, window=9, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert model.seen == 0
    torch.rand(3)
    ss.predict(model, store, tmp_path / "b.zarr", lanes=2, window=9, **SMALL)
    assert ss.open(tmp_path / "a.zarr").fingerprint == ss.open(tmp_path / "b.zarr").fingerprint


def test_modes_come_back_and_nothing_is_left_when_the_first_task_fails(tmp_path):
    model = Sum(fail_at=2)
    with pytest.raises(RuntimeError, match="enough"):
        ss.predict(model, numbers(), tmp_path / "new/y.zarr", lanes=2, window=9, **SMALL)
    assert model.training
    assert below(tmp_path) == []


ARGUMENTS = {"lanes": 2, "window": 9, **SMALL}


def stopped(uri, store, calls=30, **more):
    """A prediction that failed in the middle; how many of its tasks were finished."""
    with pytest.raises(RuntimeError, match="enough"):
        ss.predict(Sum(fail_at=calls), store, uri, **ARGUMENTS, **more)
    done = len(Job(uri).receipts())
    assert done > 0
    return done


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_a_prediction_that_failed_goes_on_and_ends_as_one_that_did_not(tmp_path, backend):
    store, uri = numbers(), tmp_path / "y"
    straight = Sum()
    ss.predict(straight, store, tmp_path / "straight", backend=backend, **ARGUMENTS)
    done = stopped(uri, store, backend=backend)
    with pytest.raises(ss.StoreError, match="no version was ever committed"):
        ss.open(uri)
    assert {path.suffix for path in (uri / "staging").iterdir()} == {""}
    told = []
    again = Sum()
    report = ss.predict(again, store, uri, backend=backend, progress=lambda *now: told.append(now), **ARGUMENTS)
    assert (report.tasks_before, report.finished_before) == (done, False)
    assert again.calls < straight.calls - 20
    assert told[0][0] > 0
    assert told[-1] == (sum(LENGTHS), sum(LENGTHS))
    assert ss.open(uri).fingerprint == ss.open(tmp_path / "straight").fingerprint
    check_sums(uri, store)
    assert no_leftovers(uri)


def no_leftovers(uri):
    shards = {path.name for path in (uri / "shards").iterdir()} - {"zarr.json"}
    assert shards == {shard.id for shard in ss.open(uri).snapshot.shards}
    assert {path.name for path in (uri / "staging").iterdir()} - {"zarr.json"} == {"predict"}
    assert {path.name for path in (uri / "staging/predict").iterdir()} == {"job.json", "report.json", "lock"}
    return True


def test_a_finished_prediction_is_told_and_not_computed_again(tmp_path):
    store, uri = numbers(), tmp_path / "y.zarr"
    first = ss.predict(Sum(), store, uri, **ARGUMENTS)
    again = Sum(fail_at=1)
    report = ss.predict(again, store, uri, **ARGUMENTS)
    assert again.calls == 0
    assert report.finished_before
    assert str(report).startswith("finished already")
    assert (report.version, report.timesteps, report.bytes_out) == (first.version, first.timesteps, first.bytes_out)
    with pytest.raises(ss.ResumeError, match="holds a finished prediction with lanes 2, this one has 3"):
        ss.predict(Sum(), store, uri, **(ARGUMENTS | {"lanes": 3}))


def test_a_kill_between_commit_and_report_is_a_finished_prediction(tmp_path, monkeypatch):
    store, uri = numbers(), tmp_path / "y.zarr"

    def killed(self, report):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.predict(Sum(), store, uri, **ARGUMENTS)
    report = ss.predict(Sum(fail_at=1), store, uri, **ARGUMENTS)
    assert report.timesteps == sum(LENGTHS)
    check_sums(uri, store)
    assert no_leftovers(uri)


def other(total, window):
    return {"y": total}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"lanes": 3}, "lanes 2, this one has 3"),
        ({"window": 10}, "window 9, this one has 10"),
        ({"shard_bytes": 400}, "shard bytes 512, this one has 400"),
        ({"outputs": other}, "outputs None, this one has other"),
        ({"sequences": ["s1"]}, "sequences all, this one has"),
        ({"lookahead": {"n": ("x", 1)}}, "lookahead {}"),
    ],
)
def test_what_was_done_is_not_mixed_with_other_settings(tmp_path, what, message):
    store, uri = numbers(), tmp_path / "y.zarr"
    stopped(uri, store)
    before = below(uri)
    with pytest.raises(ss.ResumeError, match=message):
        ss.predict(Sum(), store, uri, **(ARGUMENTS | what))
    assert below(uri) == before


def test_what_was_done_is_not_mixed_with_another_model_or_store(tmp_path):
    store, uri = numbers(), tmp_path / "y.zarr"
    stopped(uri, store)
    changed = Sum()
    with torch.no_grad():
        changed.weight += 1
    with pytest.raises(ss.ResumeError, match="an unfinished prediction with model "):
        ss.predict(changed, store, uri, **ARGUMENTS)
    longer = ss.from_arrays({id: {"x": store.read(id)["x"] + 1} for id in store.ids.to_pylist()})
    with pytest.raises(ss.ResumeError, match="store fingerprint"):
        ss.predict(Sum(), longer, uri, **ARGUMENTS)
    report = ss.predict(changed, store, uri, restart=True, **ARGUMENTS)
    assert report.tasks_before == 0
    check_sums(uri, store)
    assert no_leftovers(uri)


def test_an_address_of_a_store_that_grew_is_read_as_it_was(tmp_path):
    with ss.create(tmp_path / "x.zarr", {"x": ss.Field("int64")}) as writer:
        for number, length in enumerate(LENGTHS):
            writer.write(f"s{number}", x=np.arange(length))
    stopped(tmp_path / "y.zarr", tmp_path / "x.zarr")
    with ss.append(tmp_path / "x.zarr") as writer:
        writer.write("more", x=np.arange(5))
    ss.predict(Sum(), tmp_path / "x.zarr", tmp_path / "y.zarr", **ARGUMENTS)
    check_sums(tmp_path / "y.zarr", ss.open(tmp_path / "x.zarr", 1))
    with pytest.raises(ss.ResumeError, match="a finished prediction with store version 1, this one has 2"):
        ss.predict(Sum(), tmp_path / "x.zarr", tmp_path / "y.zarr", **ARGUMENTS)


def test_a_function_is_known_by_its_code_and_an_object_by_what_it_says(tmp_path):
    from functools import partial

    from streamseq.training.predict_settings import describe

    class Of:
        def __init__(self, names):
            self.names = names

        def __repr__(self):
            return f"Of({self.names})"

        def __call__(self, outputs, window):
            return {}

    def make_one(constant):
        return eval(f"lambda outputs, window: {constant}")

    texts = [describe(each) for each in (Of("a"), Of("b"), make_one(1), make_one(2), partial(other, window=3), other)]
    assert len(set(texts)) == 6
    assert texts == [
        describe(each) for each in (Of("a"), Of("b"), make_one(1), make_one(2), partial(other, window=3), other)
    ]


def test_a_foreign_store_is_refused_and_stays(tmp_path):
    with ss.create(tmp_path / "y.zarr", {"x": ss.Field("int64")}) as writer:
        writer.write("a", x=np.arange(3))
    before = below(tmp_path)
    with pytest.raises(ss.StoreError, match="is a store already"):
        ss.predict(Sum(), numbers(), tmp_path / "y.zarr")
    assert below(tmp_path) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ss.StoreError, match="new or empty folder"):
        ss.predict(Sum(), numbers(), tmp_path / "full", backend="zarr")


def test_a_store_that_appears_meanwhile_is_kept(tmp_path):
    store, uri = numbers(), tmp_path / "y.zarr"

    def claim(total, window):
        if not (uri / "versions/00000001.json").exists() and (uri / "staging/predict/running").exists():
            with ss.create(uri, {"x": ss.Field("int64")}) as writer:
                writer.write("a", x=np.arange(3))
        return {"y": total}

    with pytest.raises(ss.VersionConflictError):
        ss.predict(Sum(), store, uri, outputs=claim, **ARGUMENTS)
    assert ss.open(uri).ids.to_pylist() == ["a"]
    assert len([path for path in (uri / "shards").iterdir() if path.is_dir()]) == 1
    stopped(tmp_path / "z.zarr", store)
    with ss.create(tmp_path / "z.zarr", {"x": ss.Field("int64")}) as writer:
        writer.write("a", x=np.arange(3))
    with pytest.raises(ss.StoreError, match="not of this prediction"):
        ss.predict(Sum(), store, tmp_path / "z.zarr", **ARGUMENTS)


def test_damaged_records_are_told_and_can_be_discarded(tmp_path):
    store, uri = numbers(), tmp_path / "y.zarr"
    stopped(uri, store)
    receipt = sorted((uri / "staging/predict/receipts").iterdir())[0]
    receipt.write_bytes(receipt.read_bytes().replace(b'"timesteps": ', b'"timesteps": 1'))
    with pytest.raises(ss.ResumeError, match="crc32c"):
        ss.predict(Sum(), store, uri, **ARGUMENTS)
    (uri / "staging/predict/job.json").write_text("{")
    with pytest.raises(ss.ResumeError, match="damaged"):
        ss.predict(Sum(), store, uri, **ARGUMENTS)
    ss.predict(Sum(), store, uri, restart=True, **ARGUMENTS)
    check_sums(uri, store)


def test_a_task_whose_shards_are_gone_is_done_again(tmp_path):
    store, uri = numbers(), tmp_path / "y.zarr"
    done = stopped(uri, store)
    shard = Job(uri).receipts()[0].shards[0].id
    for path in (uri / "shards" / shard).rglob("*"):
        if path.is_file():
            path.unlink()
    subprocess.run(["rm", "-r", uri / "shards" / shard], check=True)
    report = ss.predict(Sum(), store, uri, **ARGUMENTS)
    assert report.tasks_before == done - 1
    check_sums(uri, store)


def test_two_processes_do_not_write_one_prediction(tmp_path):
    store, uri = numbers(), tmp_path / "y.zarr"
    model = Slow()
    thread = threading.Thread(target=lambda: ss.predict(model, store, uri, **ARGUMENTS))
    thread.start()
    while not (uri / "staging/predict/running").exists():
        time.sleep(0.001)
    with pytest.raises(ss.StreamseqError, match="another process predicts into"):
        ss.predict(Slow(), store, uri, **ARGUMENTS)
    thread.join()
    check_sums(uri, store)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": lambda x, state: (x, state)}, TypeError, "torch.nn.Module"),
        ({"lanes": 0}, ValueError, "lanes is at least 1"),
        ({"window": None}, TypeError, "window is an integer"),
        ({"workers": -1}, ValueError, "workers is at least 0"),
        ({"threads": 0}, ValueError, "threads is at least 1"),
        ({"inputs": "z"}, KeyError, "'z'"),
        ({"inputs": 3}, TypeError, "inputs is"),
        ({"outputs": "y"}, TypeError, "outputs is a function"),
        ({"sequences": "s1"}, TypeError, "list of ids"),
        ({"sequences": ["s1", "s1"]}, ValueError, "'s1' twice"),
        ({"sequences": ["none"]}, KeyError, "'none'"),
        ({"sequences": ["s0"]}, ValueError, "no timestep"),
        ({"sequences": [("s1", 0, 3)]}, TypeError, "id is a str"),
        ({"backend": "csv"}, ValueError, "csv"),
        ({"outputs": lambda y, w: y}, TypeError, "got a Tensor"),
        ({"outputs": lambda y, w: {}}, TypeError, "a dict of nothing"),
        ({"outputs": lambda y, w: {"y": 3}}, TypeError, "a dict of int"),
        ({"outputs": lambda y, w: {"y": y[:, :1]}}, ValueError, r"\[2, 9\].*got \[2, 1\] for 'y'"),
        ({"outputs": lambda y, w: {"y": y + 1j}}, TypeError, "complex"),
        ({"outputs": lambda y, w: {"attrs": y}}, ValueError, "attrs"),
    ],
)
@pytest.mark.filterwarnings("ignore:fewer sequences")
def test_wrong_arguments_are_refused_and_nothing_is_written(tmp_path, arguments, error, message):
    given = {"model": Sum(), **ARGUMENTS, **arguments}
    with pytest.raises(error, match=message):
        ss.predict(given.pop("model"), numbers(), tmp_path / "y.zarr", **given)
    assert below(tmp_path) == []


def test_windows_that_give_other_fields_are_an_error(tmp_path):
    class Changing(Sum):
        def forward(self, x, state):
            total, state = super().forward(x, state)
            return (total if self.calls < 3 else total.double()), state

    with pytest.raises(ValueError, match=r"the first one gave y int64\[\], this one gives y float64\[\]"):
        ss.predict(Changing(), numbers(), tmp_path / "y.zarr", **ARGUMENTS)


def test_any_number_of_workers_writes_the_same_store_to_the_bit(tmp_path):
    model, store = make("lstm"), floats()
    ss.predict(model, store, tmp_path / "0.zarr", lanes=3, window=16, **SMALL)
    told = []
    ss.predict(
        model,
        store,
        tmp_path / "2.zarr",
        lanes=3,
        window=16,
        workers=2,
        progress=lambda *now: told.append(now),
        **SMALL,
    )
    assert ss.open(tmp_path / "2.zarr").fingerprint == ss.open(tmp_path / "0.zarr").fingerprint
    assert told[0] == (0, sum(LENGTHS))
    assert told[-1] == (sum(LENGTHS), sum(LENGTHS))
    assert no_leftovers(tmp_path / "2.zarr")


def test_what_fails_in_a_worker_is_raised_and_the_others_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq.training.predict.probe_fields", lambda *args: {"y": ss.Field("int64")})
    model, arguments = OneFails(tmp_path / "marker"), ARGUMENTS | {"lanes": 1}
    with pytest.raises(RuntimeError, match="enough"):
        ss.predict(model, numbers((64, 900)), tmp_path / "y.zarr", workers=2, **arguments)
    # The other task would have left a receipt.
    assert below(tmp_path) == [str(tmp_path / "marker")]


def test_a_task_stops_when_its_prediction_does(tmp_path):
    def stop(total, window):
        Job(tmp_path / "y.zarr").stop()
        return {"y": total}

    with pytest.raises(PredictionEndedError, match="stopped"):
        ss.predict(Sum(), numbers(), tmp_path / "y.zarr", outputs=stop, **ARGUMENTS)
    assert below(tmp_path) == []


def test_a_worker_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq.training.predict.probe_fields", lambda *args: {"y": ss.Field("int64")})
    with pytest.raises(ss.StreamseqError, match="a worker process died"):
        ss.predict(Deadly(), numbers(), tmp_path / "y.zarr", workers=1, **ARGUMENTS)
    assert below(tmp_path) == []


def test_what_cannot_be_pickled_is_told(tmp_path):
    with pytest.raises(TypeError, match="workers=0"):
        ss.predict(Sum(), numbers(), tmp_path / "y.zarr", outputs=lambda y, w: {"y": y}, workers=1, **ARGUMENTS)
    assert below(tmp_path) == []


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from training.test_predict import ARGUMENTS, Slow, numbers
import streamseq as ss

ss.predict(Slow(), numbers(), sys.argv[1], **ARGUMENTS)
"""


def test_a_prediction_that_was_killed_goes_on(tmp_path):
    uri = tmp_path / "y.zarr"
    here = Path(__file__).parent
    script = SCRIPT.format(path=[str(here.parent), str(here)])
    process = subprocess.Popen([sys.executable, "-c", script, uri])
    deadline = time.monotonic() + 60
    # Until some tasks are finished and another one has written something.
    while not (len(Job(uri).receipts()) > 1 and list(uri.glob("staging/*/*-*"))) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(uri.glob("versions/0*"))
    report = ss.predict(Slow(), numbers(), uri, **ARGUMENTS)
    assert 2 <= report.tasks_before < report.tasks
    check_sums(uri, numbers())
    assert no_leftovers(uri)
