"""Ignite: engines that train by TBPTT on a stream, and that evaluate it with a carried state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

try:
    from ignite.engine import Engine, EventEnum, Events
except ImportError as error:
    raise ImportError("training with Ignite needs pytorch-ignite: pip install streamseq[ignite]") from error

from streamseq.data.dataset import StreamDataset
from streamseq.data.window import Window
from streamseq.integrations.across_ranks import gather, rank_and_world_size
from streamseq.integrations.epochs import Epochs
from streamseq.integrations.pushed import PushedUpdates
from streamseq.integrations.streamed_loss import StreamedLoss
from streamseq.tbptt.engine import TBPTT
from streamseq.tbptt.model import Inputs
from streamseq.tbptt.update import Update

__all__ = ["TBPTTEvents", "TBPTTTrainer", "create_tbptt_evaluator", "create_tbptt_trainer"]


class TBPTTEvents(EventEnum):
    """What happens besides in a trainer; `UPDATE_COMPLETED(every=n)` counts `state.updates`."""

    #: After each step of the optimizer; the `Update` is `state.update`.
    UPDATE_COMPLETED = "update_completed"


class TBPTTTrainer(Engine):
    """An engine whose iterations each take a window, and make the updates that end with it; see `create_tbptt_trainer`.

    Its `state.output` is the list of these updates, `state.updates` their number since the beginning.
    """

    #: All that a checkpoint holds but the model, for `Checkpoint(to_save={"model": model, **trainer.parts}, ...)` and
    #: `Checkpoint.load_objects`. Where there are several ranks all of them save.
    parts: dict[str, Any]
    #: The windows to train on, epoch after epoch: `trainer.run(trainer.data, max_epochs=...)`.
    data: Epochs


def create_tbptt_trainer(
    tbptt: TBPTT,
    optimizer: torch.optim.Optimizer,
    stream: StreamDataset,
    *,
    clip: Callable[[], object] | None = None,
    scheduler: Any = None,
    device: torch.device | str | None = None,
    prefetch: int = 4,
) -> TBPTTTrainer:
    """An Ignite engine that trains by TBPTT(k1, k2), the same as the plain loop over `tbptt.updates`.

    Ignite counts iterations: an epoch of it is as many windows as the stream's first epoch has (or `epoch_length`),
    while the stream goes on from one epoch to the next by itself.

    Args:
        tbptt: The engine; of a `scaler` that it has, step and update are called here.
        optimizer: Steps once an update.
        stream: What to train on.
        clip: Called before each step, such as `lambda: clip_grad_norm_(model.parameters(), 1.0)`.
        scheduler: Of the learning rate; steps once an update.
        device: Where windows go; None: they stay.
        prefetch: See `StreamLoader`.

    Returns:
        The engine, with `data` to run on and `parts` to save.

    Example:
        >>> import numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((10, 3), np.float32)}})
        >>> model = torch.nn.GRU(3, 2, batch_first=True)
        >>> tbptt = ss.TBPTT(model, lambda y, w: y.square(), k1=4, k2=8)
        >>> adam = torch.optim.Adam(model.parameters())
        >>> trainer = create_tbptt_trainer(tbptt, adam, ss.StreamDataset(store, lanes=1, window=4))
        >>> trainer.run(trainer.data, max_epochs=2).updates
        6
    """
    updates, random = PushedUpdates(tbptt, stream), _Random()
    scaler = tbptt.scaler

    def take(engine: Engine, window: Window) -> list[Update]:
        random.restore()
        made = []
        for update in updates.take(window):
            if scaler is not None:
                scaler.unscale_(optimizer)
            if clip is not None:
                clip()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
            made.append(update)
            state: Any = engine.state
            state.update = update
            state.updates += 1
            engine.fire_event(TBPTTEvents.UPDATE_COMPLETED)
        return made

    trainer = TBPTTTrainer(take)
    trainer.register_events(
        TBPTTEvents.UPDATE_COMPLETED,
        event_to_attr={TBPTTEvents.UPDATE_COMPLETED: "updates"},
    )
    trainer.state_dict_user_keys.append("updates")
    trainer.data = Epochs(stream, prefetch, device)
    named = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    trainer.parts = {
        "trainer": trainer,
        "updates": updates,
        "stream": trainer.data,
        "random": random,
        **{name: part for name, part in named.items() if part is not None},
    }
    return trainer


def create_tbptt_evaluator(
    model: nn.Module, loss: Callable[[Any, Window], Tensor], *, inputs: Inputs = "x", lane_axis: Any = None
) -> Engine:
    """An Ignite engine that runs through a stream once, with a carried state of its own and in eval mode.

    `evaluator.run(stream).metrics["loss"]` is the mean over the valid timesteps of all ranks. Modes are afterwards as
    they were.

    Args:
        model, loss, inputs, lane_axis: As for `TBPTT`.

    Example:
        >>> import numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((10, 3), np.float32)}})
        >>> evaluator = create_tbptt_evaluator(torch.nn.GRU(3, 2, batch_first=True), lambda y, w: y.square())
        >>> sorted(evaluator.run(ss.StreamDataset(store, lanes=1, window=4)).metrics)
        ['loss', 'num_timesteps']
    """
    mean = StreamedLoss(model, loss, inputs=inputs, lane_axis=lane_axis)
    training: list[nn.Module] = []

    def begin(engine: Engine) -> None:
        training[:] = [module for module in model.modules() if module.training]
        model.eval()
        mean.reset()

    def rest() -> None:
        for module in training:
            module.training = True

    def end(engine: Engine) -> None:
        result = mean.result()
        engine.state.metrics.update(loss=result.loss, num_timesteps=result.num_timesteps)
        rest()

    def fail(engine: Engine, error: Exception) -> None:
        rest()
        raise error

    evaluator = Engine(lambda engine, window: mean.take(window))
    evaluator.add_event_handler(Events.STARTED, begin)
    evaluator.add_event_handler(Events.COMPLETED, end)
    evaluator.add_event_handler(Events.EXCEPTION_RAISED, fail)
    return evaluator


class _Random:
    """torch's random generators of all ranks; what is loaded holds from the next window on."""

    def __init__(self) -> None:
        self._loaded: list[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        cuda = list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else []
        return {"ranks": gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state["ranks"]

    def restore(self) -> None:
        loaded, self._loaded = self._loaded, None
        rank, world_size = rank_and_world_size()
        if loaded is None or len(loaded) != world_size:
            return
        torch.set_rng_state(loaded[rank]["cpu"].cpu())
        if loaded[rank]["cuda"] and len(loaded[rank]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([each.cpu() for each in loaded[rank]["cuda"]])
