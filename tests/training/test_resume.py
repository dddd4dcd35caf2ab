"""A run that is stopped and resumed ends bit for bit like one that is not, and refuses what is another run."""

import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from corpus import Recorder, make_settings, make_store, text

import streamseq as ss
from streamseq.training import load_model, read_checkpoint, save_checkpoint, train

pytestmark = pytest.mark.usefixtures("undrawn")

RUNS = {
    "k, 2k": {},
    "gru": {"cell": "gru", "layers": 2, "k1": 16, "k2": 32},
    "several updates a window": {"window": 16, "k1": 4, "k2": 10},
    "several windows an update": {"window": 4, "k1": 12, "k2": 20, "segment": 6},
    "whole sequences": {"k1": None, "k2": None},
    "one sequence": {"held_out": 0.1, "layout": "even"},
    "as they are": {"split": "as-is", "k1": 16, "k2": 32},
}


def interrupt(number=signal.SIGINT):
    # To this thread: one that goes to another may come together with the next.
    return lambda: signal.raise_signal(number)


def outcome(folder):
    """All that a run leaves, but for the seconds it took."""
    saved = read_checkpoint(folder / "checkpoint.pt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(row["event"], row["update"], row["loss"], row["timesteps"]) for row in lines]
    timed = {"seconds", "waited", "seconds_then"}
    run = {name: value for name, value in saved["parts"]["run"].items() if name not in timed}
    return saved["parts"]["model"], saved["parts"]["optimizer"], saved["rng"], run, curve


def assert_same(left, right):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same(left[name], right[name])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


@pytest.mark.parametrize("name", RUNS)
def test_stopping_at_any_update_and_resuming_changes_nothing(tmp_path, name):
    settings = make_settings(**RUNS[name])
    store = make_store()
    whole = train(store, tmp_path / "whole", settings)
    stops = range(1, whole.updates, max(1, whole.updates // 4))
    for stop in stops:
        folder = tmp_path / f"stopped-{stop}"
        result = train(store, folder, settings, reporter=Recorder({stop: interrupt()}))
        while not result.finished:
            assert (result.stopped_by, result.exit_code) == ("SIGINT", 130)
            assert result.updates >= stop
            again = Recorder({result.updates + 7: interrupt()})
            result = train(store, folder, settings, resume=True, reporter=again)
            assert "going on after" in again.notes[0]
        assert_same(outcome(folder), outcome(tmp_path / "whole"))


def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path):
    class Died(Exception):
        pass

    def die():
        raise Died

    settings, store = make_settings(checkpoint_every=4), make_store()
    train(store, tmp_path / "whole", settings)
    for update in (1, 6, 11):
        folder = tmp_path / f"died-{update}"
        with pytest.raises(Died):
            train(store, folder, settings, reporter=Recorder({update: die}))
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"event": "tr')
        recorder = Recorder()
        train(store, folder, settings, resume=True, reporter=recorder)
        assert recorder.shown[0].update == update // 4 * 4 + 1
        assert_same(outcome(folder), outcome(tmp_path / "whole"))


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from corpus import Recorder, make_settings
from streamseq.training import train
torch.rand(int(sys.argv[2]))  # the generators of the process are at another place each time
at = {{5: lambda: os.kill(os.getpid(), signal.SIGTERM)}} if sys.argv[1] == "stop" else {{}}
settings = make_settings() if sys.argv[1] != "resume" else None
result = train({store!r}, sys.argv[3], settings, resume=sys.argv[1] == "resume", reporter=Recorder(at))
sys.exit(result.exit_code)
"""


def test_another_process_resumes_on_the_version_that_the_run_began_with(tmp_path):
    uri = tmp_path / "store.zarr"
    with ss.create(uri, {"x": ss.Field("uint8")}) as writer:
        for index, length in enumerate((90, 61, 130, 40, 75, 33)):
            writer.write(f"doc-{index}", x=text(length, index))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent), store=str(uri))))

    def run(*arguments):
        return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True).returncode

    assert run("whole", 1, tmp_path / "whole") == 0
    assert run("stop", 2, tmp_path / "stopped") == 128 + signal.SIGTERM
    with ss.append(uri) as writer:
        writer.write("later", x=text(50, 9))
    assert ss.open(uri).version == 2
    assert run("resume", 3, tmp_path / "stopped") == 0
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))


def test_a_finished_run_says_so_and_gives_its_result(tmp_path):
    result = train(make_store(), tmp_path / "out", make_settings(updates=7))
    before = (tmp_path / "out" / "checkpoint.pt").read_bytes()
    recorder = Recorder()
    again = train(make_store(), tmp_path / "out", make_settings(updates=7), resume=True, reporter=recorder)
    assert recorder.notes == [f"finished already, after update 7 of the run in {tmp_path / 'out'}"]
    assert replace(again, peak_rss_bytes=0) == replace(result, peak_rss_bytes=0)
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == before


def test_the_settings_of_the_run_are_taken_where_none_are_given(tmp_path):
    settings = make_settings(updates=9)
    train(make_store(), tmp_path / "out", settings, reporter=Recorder({4: interrupt()}))
    result = train(make_store(), tmp_path / "out", resume=True)
    assert result.updates == 9
    assert load_model(result.checkpoint)[1] == replace(settings, task="language")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 4}, "saved with lanes=3, this run has lanes=4"),
        ({"k2": 24}, "saved with k2=16, this run has k2=24"),
        ({"hidden": 13}, "saved with hidden=12, this run has hidden=13"),
        ({"learning_rate": 0.5}, "saved with learning_rate=0.004, this run has learning_rate=0.5"),
        ({"seed": 1}, "saved with seed=0, this run has seed=1"),
        ({"updates": 50}, "saved with updates=9, this run has updates=50"),
    ],
)
def test_other_settings_are_refused_and_the_checkpoint_stays(tmp_path, change, message):
    train(make_store(), tmp_path / "out", make_settings(updates=9), reporter=Recorder({4: interrupt()}))
    before = (tmp_path / "out" / "checkpoint.pt").read_bytes()
    with pytest.raises(ss.ResumeError, match=message) as caught:
        train(make_store(), tmp_path / "out", make_settings(**({"updates": 9} | change)), resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == before


def test_settings_that_do_not_decide_the_parameters_may_change(tmp_path):
    train(make_store(), tmp_path / "out", make_settings(updates=9), reporter=Recorder({4: interrupt()}))
    settings = make_settings(updates=9, threads=2, log_every=1, checkpoint_every=1)
    assert train(make_store(), tmp_path / "out", settings, resume=True).threads == 2


def test_another_store_is_refused(tmp_path):
    train(make_store(), tmp_path / "out", make_settings(updates=9), reporter=Recorder({4: interrupt()}))
    with pytest.raises(ss.ResumeError, match=r"saved with store_fingerprint=.*, this run has store_fingerprint="):
        train(make_store([90, 61]), tmp_path / "out", make_settings(updates=9), resume=True)


def test_there_must_be_a_checkpoint_of_the_trainer(tmp_path):
    with pytest.raises(ss.ResumeError, match=r"there is no checkpoint .*: start without resuming"):
        train(make_store(), tmp_path / "out", resume=True)
    save_checkpoint(tmp_path / "checkpoint.pt", model={"weight": torch.ones(1)})
    with pytest.raises(ss.ResumeError, match="is not a checkpoint of the trainer"):
        train(make_store(), tmp_path, resume=True)


def test_a_second_ctrl_c_stops_at_once_and_the_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def twice():
        interrupt()()
        interrupt()()

    with pytest.raises(KeyboardInterrupt):
        train(make_store(), tmp_path / "out", make_settings(), reporter=Recorder({3: twice}))
    assert signal.getsignal(signal.SIGINT) is before
    train(make_store(), tmp_path / "other", make_settings(updates=2))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_before_the_first_update_is_heeded_after_it(tmp_path):
    class AtOnce(Recorder):
        def note(self, text):
            if not self.notes:
                interrupt()()
            super().note(text)

    recorder = AtOnce()
    result = train(make_store(), tmp_path / "out", make_settings(), reporter=recorder)
    assert (result.updates, result.stopped_by) == (1, "SIGINT")
    assert recorder.notes[-1].startswith("stopped by SIGINT after update 1, saved in ")
    assert recorder.notes[-1].endswith("the same command with --resume goes on")
