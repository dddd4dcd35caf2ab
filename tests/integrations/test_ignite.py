"""Ignite trains by TBPTT on a stream, and resumes, as the plain loop does."""

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver
from torch.nn.utils import clip_grad_norm_

import streamseq as ss
from streamseq.integrations.ignite import TBPTTEvents, create_tbptt_evaluator, create_tbptt_trainer
from streamseq.training import evaluate

from . import loops


def make(k1=4, k2=8, **options):
    model = loops.Network()
    optimizer = loops.adam(model)
    tbptt = ss.TBPTT(model, loops.loss, k1=k1, k2=k2, **options)
    source = loops.stream()
    trainer = create_tbptt_trainer(
        tbptt,
        optimizer,
        source,
        clip=lambda: clip_grad_norm_(model.parameters(), 0.5),
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99),
    )
    windows = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: windows.append(loops.position(trainer.state.batch)))
    return model, trainer, windows


@pytest.fixture
def num_windows():
    """Of two epochs, which need not have the same number."""
    source = loops.stream()
    first = len(source)
    source.set_epoch(1)
    return first + len(source)


@pytest.mark.parametrize("options", [{}, {"k1": 2, "k2": 5}, {"k1": 8, "k2": 12}], ids=str)
def test_training_is_the_plain_loop_bit_for_bit(options, num_windows):
    model, trainer, windows = make(**options)
    losses = []
    trainer.add_event_handler(TBPTTEvents.UPDATE_COMPLETED, lambda: losses.append(float(trainer.state.update.loss)))
    torch.manual_seed(11)
    trainer.run(trainer.data, max_iters=num_windows)
    parameters, wanted, wanted_windows = loops.plain(2, **options)
    assert windows == wanted_windows
    assert losses == wanted
    assert trainer.state.updates == len(wanted)
    loops.assert_same_parameters(model, parameters)


@pytest.mark.parametrize("after", [5, 17, 20])
def test_a_run_that_was_stopped_within_an_epoch_and_resumed_is_one_that_was_not(tmp_path, after, num_windows):
    options = {"k1": 8, "k2": 12}
    model, trainer, seen = make(**options)
    saver = Checkpoint(
        {"model": model, **trainer.parts}, DiskSaver(tmp_path, require_empty=False), filename_prefix="at"
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=after), saver)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=after), lambda: trainer.terminate())
    torch.manual_seed(11)
    trainer.run(trainer.data, max_iters=num_windows)
    assert len(seen) == after
    torch.manual_seed(5)
    model, trainer, rest = make(**options)
    saved = torch.load(tmp_path / saver.last_checkpoint, weights_only=True)
    Checkpoint.load_objects({"model": model, **trainer.parts}, saved)
    trainer.run(trainer.data)
    parameters, losses, windows = loops.plain(2, **options)
    assert seen + rest == windows
    assert trainer.state.updates == len(losses)
    loops.assert_same_parameters(model, parameters)


def test_epochs_of_ignite_go_on_through_those_of_the_stream():
    _, trainer, windows = make()
    trainer.run(trainer.data, max_epochs=5, epoch_length=7)
    source, wanted = loops.stream(), []
    for epoch in range(3):
        source.set_epoch(epoch)
        wanted += [loops.position(window) for window in source]
    assert windows == wanted[:35]


def test_an_evaluation_is_streamed_and_leaves_modes_as_they_were():
    model, source = loops.Network(), loops.stream("val")
    model.rnn.eval()
    evaluator = create_tbptt_evaluator(model, loops.loss)
    for _ in range(2):
        metrics = evaluator.run(source).metrics
        assert metrics["loss"] == evaluate(model, loops.loss, source).loss
        assert metrics["num_timesteps"] == sum(loops.LENGTHS["val"])
    assert model.training
    assert not model.rnn.training


def test_an_evaluation_that_fails_leaves_modes_as_they_were():
    model, source = loops.Network(), loops.stream("val")
    with pytest.raises(ss.ContinuityError):
        create_tbptt_evaluator(model, loops.loss).run([source[0], source[2]])
    assert model.training
    assert model.dropout.training


def test_a_scaler_is_stepped():
    model = loops.Network(dropout=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    tbptt = ss.TBPTT(model, loops.loss, k1=4, k2=8, scaler=scaler)
    trainer = create_tbptt_trainer(tbptt, loops.adam(model), loops.stream())
    trainer.run(trainer.data, max_iters=4)
    assert scaler.get_scale() == 16
    # Powers of two change no digit.
    plain = loops.Network(dropout=0.0)
    optimizer = loops.adam(plain)
    updates = ss.TBPTT(plain, loops.loss, k1=4, k2=8).updates(loops.stream())
    for _ in range(4):
        next(updates)
        optimizer.step()
        optimizer.zero_grad()
    loops.assert_same_parameters(model, dict(plain.named_parameters()))
