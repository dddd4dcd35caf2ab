"""TBPTT for a LightningModule: training steps by the engine, validation and tests with a carried state of their own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamseq.data.window import Window
from streamseq.integrations.across_ranks import gather, rank_and_world_size
from streamseq.integrations.pushed import PushedUpdates
from streamseq.integrations.streamed_loss import StreamedLoss
from streamseq.tbptt.engine import TBPTT
from streamseq.tbptt.model import Inputs
from streamseq.tbptt.past import stream_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object

_AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_SCHEDULES = ("update", "epoch")


class StreamedTBPTT(_Base):
    """What a LightningModule needs to be trained by TBPTT(k1, k2).

    A subclass has `forward(inputs, state) -> (outputs, state)`, `loss(outputs, window)` and `configure_optimizers`,
    with one optimizer; `initial_state(B)` where the first state is not zeros. A batch is a window of a stream, which
    `StreamDataModule` gives.

    A training step makes the updates that end with its window, none or several, with the trainer's precision, and
    counts each in `trainer.global_step`. Logged are `train_loss`, `val_loss` and `test_loss`, means over the valid
    timesteps of all ranks. The engine's state and the random generators are in the trainer's checkpoints, which may be
    taken after any window. A subclass that overrides a hook of this class calls `super()`'s.

    Args:
        k1, k2, inputs, options: See `streamseq.TBPTT`. Precision is the trainer's: neither `autocast` nor `scaler`.
        clip_norm: The largest norm of the gradient of an update; None: any. (Trainers clip only where they call
            backward themselves.)
        schedule: When learning rate schedulers step: after each "update", or each "epoch".

    Raises:
        ValueError: `schedule` is neither.
    """

    def __init__(
        self,
        *,
        k1: int | None,
        k2: int | None,
        inputs: Inputs = "x",
        clip_norm: float | None = None,
        schedule: str = "update",
        **options: Any,
    ) -> None:
        super().__init__()
        if schedule not in _SCHEDULES:
            raise ValueError(f"schedule is one of {', '.join(_SCHEDULES)}, got {schedule!r}")
        self.automatic_optimization = False
        self._engine_options = {"k1": k1, "k2": k2, "inputs": inputs, **options}
        self._clip_norm = clip_norm
        self._schedule = schedule
        self._updates: PushedUpdates | None = None
        self._loaded: dict[str, Any] | None = None
        self._mean: StreamedLoss | None = None

    def loss(self, outputs: Any, window: Window) -> Tensor:
        """One loss per timestep, [B, K] (or [K, B]); see `streamseq.TBPTT`."""
        raise NotImplementedError(
            f"a module trained by TBPTT has loss(outputs, window), {type(self).__name__} has none"
        )

    def on_fit_start(self) -> None:
        """Begin with the states of a checkpoint, or none."""
        self._updates = None

    def training_step(self, batch: Window, batch_idx: int) -> None:
        """Make the updates that end with a window."""
        updates = self._updates = self._updates or self._make_updates()
        self._restore()
        optimizer = self.optimizers()
        if isinstance(optimizer, list):
            raise TypeError(f"an update is one step of one optimizer, got {len(optimizer)}: configure one")
        losses: list[Tensor] = []
        counts: list[int] = []
        # The engine has a precision of its own, for a backward pass does not belong into that of the step.
        with self._plain_precision():
            for update in updates.take(batch, last=self.trainer.is_last_batch):
                optimizer.step()
                optimizer.zero_grad()
                if self._schedule == "update":
                    self.step_schedulers()
                losses.append(update.loss * update.num_timesteps)
                counts.append(update.num_timesteps)
        if counts:
            mean = torch.stack(losses).sum() / sum(counts)
            self._log("train_loss", mean, on_step=True, on_epoch=True, batch_size=sum(counts))

    def _make_updates(self) -> PushedUpdates:
        loader: Any = self.trainer.train_dataloader
        stream = stream_of(loader)
        if stream is None:
            raise TypeError(
                f"TBPTT is trained on the windows of a stream, got a {type(loader).__name__}: pass a StreamDataModule, "
                "or a StreamLoader"
            )
        plugin, precision = self.trainer.precision_plugin, str(self.trainer.precision)
        options = {**self._engine_options}
        if options.get("memory") is not None:
            # Measured once, not before each window.
            options["segment"] = TBPTT(self, self.loss, **options).memory(stream).segment
            options["memory"] = None
        engine = TBPTT(
            self,
            self.loss,
            **options,
            autocast=_AUTOCAST.get(precision),
            scaler=getattr(plugin, "scaler", None),
        )
        return PushedUpdates(engine, stream)

    def _plain_precision(self) -> Any:
        mixed = str(self.trainer.precision) in _AUTOCAST
        return torch.autocast(self.device.type, enabled=False) if mixed else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient of an update, which is unscaled."""
        if self._clip_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self._clip_norm, gradient_clip_algorithm="norm")

    def step_schedulers(self) -> None:
        """Step the learning rate schedulers, after each update or epoch; override it for those that need a metric."""
        for config in self.trainer.lr_scheduler_configs:
            self.lr_scheduler_step(config.scheduler, None)

    def on_train_epoch_end(self) -> None:
        """Step schedulers that count epochs."""
        if self._schedule == "epoch":
            self.step_schedulers()

    def on_validation_epoch_start(self) -> None:
        """Begin with no state."""
        self._mean = self._make_mean()

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        """Run a window with the state of the one before."""
        assert self._mean is not None
        self._mean.take(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all timesteps."""
        self._log_mean("val_loss")

    def on_test_epoch_start(self) -> None:
        """Begin with no state."""
        self._mean = self._make_mean()

    def test_step(self, batch: Window, batch_idx: int) -> None:
        """Run a window with the state of the one before."""
        assert self._mean is not None
        self._mean.take(batch)

    def on_test_epoch_end(self) -> None:
        """Log the mean over all timesteps."""
        self._log_mean("test_loss")

    def on_predict_epoch_start(self) -> None:
        """Begin with no state."""
        self._mean = self._make_mean()

    def predict_step(self, batch: Window, batch_idx: int) -> list[tuple[Window, Any]]:
        """The outputs of a window with the state of the one before, by part (see `Window.parts`)."""
        assert self._mean is not None
        return self._mean.outputs(batch)

    def _make_mean(self) -> StreamedLoss:
        options = self._engine_options
        return StreamedLoss(self, self.loss, inputs=options["inputs"], lane_axis=options.get("lane_axis"))

    def _log_mean(self, name: str) -> None:
        assert self._mean is not None
        result = self._mean.result()
        self._mean = None
        self._log(name, result.loss)

    def _log(self, name: str, value: float | Tensor, **options: Any) -> None:
        # It is the same on all ranks already, but what is not averaged over them makes the trainer warn.
        self.log(name, value, prog_bar=True, sync_dist=rank_and_world_size()[1] > 1, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the engine's state and the random generators, of all ranks."""
        if self._updates is not None:
            random = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                random["cuda"] = torch.cuda.get_rng_state(self.device)
            checkpoint["streamseq"] = {"updates": self._updates.state_dict(), "random": gather(random)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there in the next training step."""
        self._loaded = checkpoint.get("streamseq")

    def _restore(self) -> None:
        if self._loaded is None:
            return
        saved, self._loaded = self._loaded, None
        assert self._updates is not None
        self._updates.load_state_dict(saved["updates"])
        rank, world_size = rank_and_world_size()
        if len(saved["random"]) == world_size:
            random = saved["random"][rank]
            torch.set_rng_state(random["cpu"].cpu())
            if "cuda" in random and self.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"].cpu(), self.device)
