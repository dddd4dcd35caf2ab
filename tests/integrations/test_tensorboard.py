"""TensorBoard shows the curves of a run, also of one that was stopped and resumed."""

import itertools

import numpy as np
import pytest
from support.models import make, squared_error
from support.updates import make_stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import streamseq as ss
from streamseq import cli
from streamseq.integrations.tensorboard import TensorBoardReporter, log_updates
from streamseq.training import TrainingSettings, train


def curves(folder):
    """By tag, the steps and values that TensorBoard shows."""
    board = EventAccumulator(str(folder))
    board.Reload()
    return {tag: [(each.step, each.value) for each in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.fixture
def store():
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 20, np.uint8)
    return ss.from_arrays({f"{i}": {"x": np.roll(text, i)} for i in range(6)})


SETTINGS = {"k1": 16, "k2": 32, "lanes": 2, "hidden": 8, "threads": 1, "evaluate_every": 4, "held_out": 0.2}


class Heard:
    def __init__(self):
        self.updates, self.notes = [], []

    def show(self, progress):
        self.updates.append(progress.update)

    def note(self, text):
        self.notes.append(text)


def test_a_run_and_what_was_evaluated_are_shown(tmp_path, store):
    heard = Heard()
    settings = TrainingSettings(**SETTINGS, updates=10)
    with TensorBoardReporter(tmp_path / "board", also=heard) as board:
        result = train(store, tmp_path / "run", settings, reporter=board)
        board.finish(result)
        board.finish(result)
    found = curves(tmp_path / "board")
    assert [step for step, _ in found["loss/train"]] == list(range(1, 11)) == heard.updates
    assert heard.notes
    assert [step for step, _ in found["loss/held_out"]] == [4, 8, 10]
    assert found["loss/held_out"][-1][1] == pytest.approx(result.held_out_loss)
    assert all(value > 0 for tag in ("speed/timesteps_per_second", "memory/peak_rss_bytes") for _, value in found[tag])


def test_a_run_that_goes_on_after_a_checkpoint_shows_each_update_once(tmp_path, store):
    class Killed(Exception):
        pass

    class Kill(Heard):
        def show(self, progress):
            if progress.update == 7:
                raise Killed

    settings = TrainingSettings(**SETTINGS, updates=10, checkpoint_every=5)
    with pytest.raises(Killed), TensorBoardReporter(tmp_path / "board", also=Kill()) as board:
        train(store, tmp_path / "run", settings, reporter=board)
    assert len(curves(tmp_path / "board")["loss/train"]) == 7
    with TensorBoardReporter(tmp_path / "board") as board:
        board.finish(train(store, tmp_path / "run", resume=True, reporter=board))
    found = curves(tmp_path / "board")
    assert [step for step, _ in found["loss/train"]] == list(range(1, 11))
    assert [step for step, _ in found["loss/held_out"]] == [4, 8, 10]


def test_a_run_that_is_finished_already_leaves_no_file(tmp_path, store):
    train(store, tmp_path / "run", TrainingSettings(**SETTINGS, updates=2))
    with TensorBoardReporter(tmp_path / "board") as board:
        board.finish(train(store, tmp_path / "run", resume=True, reporter=board))
    assert not (tmp_path / "board").exists()


def test_a_loop_of_one_s_own_logs_means_over_timesteps(tmp_path):
    def updates():
        return ss.TBPTT(make("gru"), squared_error, k1=4, k2=8).updates(make_stream([24, 9], lanes=2, window=4))

    losses = [(float(update.loss), update.num_timesteps) for update in updates()]
    with SummaryWriter(tmp_path) as writer:
        passed = list(log_updates(itertools.islice(updates(), 5), writer, start=100, every=2))
    assert [float(update.loss) for update in passed] == [loss for loss, _ in losses[:5]]
    found = curves(tmp_path)
    wanted = [
        (number, sum(loss * n for loss, n in part) / sum(n for _, n in part))
        for number, part in ((102, losses[:2]), (104, losses[2:4]), (105, losses[4:5]))
    ]
    assert found["loss/train"] == [(number, pytest.approx(value, rel=1e-6)) for number, value in wanted]
    assert found["k2"] == [(number, 8) for number in range(101, 106)]


def test_writing_every_zeroth_update_is_an_error(tmp_path):
    with SummaryWriter(tmp_path) as writer, pytest.raises(ValueError, match="every is at least 1, got 0"):
        next(log_updates([], writer, every=0))


def test_the_command_writes_curves_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ss.create("text.zarr", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.arange(300, dtype=np.uint8))
    small = ["--k1", "16", "--k2", "16", "--lanes", "2", "--hidden", "8", "--threads", "1", "--quiet"]
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "text.zarr", "--out", "run", "--updates", "3", "--tensorboard", *small])
    assert done.value.code == 0
    assert [step for step, _ in curves("run/tensorboard")["loss/train"]] == [1, 2, 3]
