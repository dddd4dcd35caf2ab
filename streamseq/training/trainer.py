"""The reference trainer: TBPTT, Adam, clipping, evaluations and checkpoints, from a store to a result."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from streamseq.core.errors import ResumeError, StreamseqError
from streamseq.data.loader import StreamLoader
from streamseq.storage.interface import Store
from streamseq.storage.store import open as open_store
from streamseq.tbptt.engine import TBPTT
from streamseq.tbptt.update import Update
from streamseq.training.build import Streams, build_streams
from streamseq.training.checkpoint import HasState, check_settings, load_checkpoint, read_checkpoint, save_checkpoint
from streamseq.training.choose_task import task_of_saved
from streamseq.training.curves import draw_curves
from streamseq.training.end import RunEnd
from streamseq.training.forecast import ForecastTask
from streamseq.training.forecast_baselines import forecast_baselines
from streamseq.training.interrupt import StopSignal
from streamseq.training.metrics import MetricsLog
from streamseq.training.progress import Progress, Reporter, Silent
from streamseq.training.result import Totals, TrainingResult
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import Task
from streamseq.training.threads import choose_threads, thread_count
from streamseq.training.unit import BITS, in_unit
from streamseq.training.usage import peak_rss_bytes

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
CURVES = "curves.png"

# In runs of a few thousand updates an average over the last 100 follows the size of the gradients better than torch's
# default, one over 1,000.
BETAS = (0.9, 0.99)


class NonFiniteLossError(StreamseqError):
    """The loss or its gradient is infinite or not a number; the parameters are still those before the update."""


def train(
    store: Store | str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: TrainingSettings | None = None,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    draw: bool = True,
) -> TrainingResult:
    """Train a model on a store, or go on with a run that was stopped.

    What is learnt goes with the fields of the store and the settings, see `find_task`: the next byte or token, or
    numbers some timesteps ahead.

    The folder gets `checkpoint.pt`, `metrics.jsonl` and `curves.png`. Ctrl-C or SIGTERM ends the run at the end of a
    window, with a checkpoint. A run that is stopped and resumed ends with the same parameters, bit for bit, as one
    that is not, on the CPU with the same number of threads.

    Args:
        store: A store, or where one lies; of that the newest version, on resume the one that the run began with.
        out: The run's folder.
        settings: None: the defaults, on resume those of the run.
        resume: Whether to go on with the run in `out`. One that is finished gives its result.
        reporter: Hears of the progress.
        draw: Whether `curves.png` is drawn.

    Raises:
        ValueError: `out` holds a run and it is not to be resumed, or the store cannot be trained on.
        ResumeError: There is no whole checkpoint, or it was saved with other settings or on another store.
        NonFiniteLossError: The loss or the gradient is not finite.
        StoreError: There is no such store.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> store = ss.from_arrays({f"{i}": {"x": np.arange(200, dtype=np.uint8)} for i in range(4)})
        >>> settings = TrainingSettings(k1=16, k2=32, lanes=2, hidden=8, updates=3, threads=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(store, folder, settings)
        >>> result.updates, result.timesteps
        (3, 96)
    """
    folder = Path(out)
    checkpoint = folder / CHECKPOINT
    saved = None
    if resume:
        saved = read_checkpoint(checkpoint)
        if "run" not in saved["parts"] or "store_version" not in saved["settings"]:
            raise ResumeError(f"{checkpoint} is not a checkpoint of the trainer: name the folder of a run")
        settings = settings or TrainingSettings.from_saved(saved["settings"])
    elif checkpoint.exists() or (folder / METRICS).exists():
        raise ValueError(
            f"{folder} holds a run already: resume=True (--resume) goes on with it, or take another folder"
        )
    settings = settings or TrainingSettings()
    if saved is not None:
        # One that was saved before there was some setting had it as it is by default.
        earlier = asdict(TrainingSettings.from_saved(saved["settings"]))
        check_settings(checkpoint, earlier | saved["settings"], settings.bound())
    if not isinstance(store, Store):
        store = open_store(store, version=None if saved is None else saved["settings"]["store_version"])
    devices = [torch.device(settings.device)] if settings.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), StopSignal() as stop:
        torch.manual_seed(settings.seed)
        task = None if saved is None else task_of_saved(saved["parts"].get("task"), settings)
        trainer = _Trainer(store, folder, settings, task, reporter or Silent(), stop, draw)
        if saved is None:
            trainer.begin()
        else:
            trainer.resume(saved["parts"]["run"], saved["parts"].get("about", {}))
        return trainer.run()


class _Trainer:
    """One process's part of a run: `begin()` or `resume()`, then `run()`."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        settings: TrainingSettings,
        task: Task | None,
        reporter: Reporter,
        stop: StopSignal,
        draw: bool,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._reporter = reporter
        self._stop = stop
        self._wants_curves = draw
        self._store = store
        self._streams: Streams = build_streams(store, settings, task)
        self._task = task = self._streams.task
        self._loader = StreamLoader(self._streams.train, device=settings.device)
        self._end = RunEnd.of(self._streams.train, settings, task)
        self._model = task.build(settings).to(settings.device)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=settings.learning_rate, betas=BETAS)
        self._tbptt = TBPTT(
            self._model,
            task.loss,
            k1=settings.k1,
            k2=settings.k2,
            inputs=task.inputs,
            segment=settings.segment,
            memory=settings.memory,
            burn_in=settings.burn_in,
        )
        self._metrics = MetricsLog(folder / METRICS)
        self._checkpoint = folder / CHECKPOINT
        self._run = Totals()
        #: What a report says of it, and no result depends on.
        self._about: dict[str, Any] = {"store": store.uri, "peak_rss_bytes": 0, "resumed": 0}
        self._waited_before = 0.0
        self._saved_at = 0
        #: Where the stream goes on after the last update.
        self._position: HasState = self._loader

    def begin(self) -> None:
        """Start a run: its folder, its number of threads, and a checkpoint of the start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run.threads = self._settings.threads or self._probe_threads()
        if isinstance(self._task, ForecastTask) and self._streams.held_out is not None:
            self._run.baselines = forecast_baselines(self._task, StreamLoader(self._streams.held_out))
        self._save()
        split = self._streams.split
        held = sum(stop - start for _, start, stop in split.held_out)
        self._reporter.note(
            f"{self._task.describe()}\n"
            f"training on {self._streams.train.num_timesteps:,} timesteps of {len(split.train):,} sequences, held out "
            f"{held:,} of {len(split.held_out):,}; {self._end}, threads: {self._run.threads}"
        )

    def _probe_threads(self) -> int:
        settings = self._settings
        if settings.device != "cpu":
            return torch.get_num_threads()
        model = copy.deepcopy(self._model)
        with torch.random.fork_rng(devices=[]):
            x = self._task.example(settings.lanes, min(256, settings.window_length))
            return choose_threads(lambda: model(x)[0].sum().backward())

    def resume(self, saved: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Go on with the run of which the checkpoint says `saved`, and `about` beside it."""
        settings = self._settings
        load_checkpoint(
            self._checkpoint,
            settings=self._store_settings(),
            map_location=settings.device,
            model=self._model,
            optimizer=self._optimizer,
            tbptt=self._tbptt,
            stream=self._loader,
        )
        self._run = Totals(**saved)
        self._run.threads = settings.threads or self._run.threads
        self._about |= {"peak_rss_bytes": about.get("peak_rss_bytes", 0), "resumed": about.get("resumed", 0) + 1}
        self._saved_at = self._run.updates
        self._metrics.cut_after(self._run.updates)
        done = "finished already, after" if self._run.finished else "going on after"
        self._reporter.note(f"{done} update {self._run.updates:,} of the run in {self._folder}")

    def run(self) -> TrainingResult:
        """Make the updates that are left."""
        curves = self._folder / CURVES
        if self._run.finished:
            return self._result(curves if curves.exists() else None)
        with thread_count(self._run.threads):
            finished = self._train()
            if finished:
                self._finish()
        drawn = self._wants_curves and self._draw(curves)
        if not finished and self._stop.received is not None:
            self._reporter.note(
                f"stopped by {self._stop.received.name} after update {self._run.updates:,}, saved in "
                f"{self._checkpoint}: the same command with --resume goes on"
            )
        return self._result(curves if drawn else None)

    def _train(self) -> bool:
        """Update until the run is finished (True) or a signal says stop (False)."""
        run, settings = self._run, self._settings
        save_due = False
        if self._end.is_reached(run):
            return True
        begin = perf_counter()
        for update in self._updates():
            norm, before = self._apply(update), run.seconds
            run.seconds += perf_counter() - begin
            run.waited = self._waited_before + self._loader.stats.waited
            self._show()
            if run.updates % settings.log_every == 0:
                self._log_training(norm)
            if self._is_to_be_evaluated(before):
                self._evaluate()
            if self._end.is_reached(run):
                return True
            stopped = self._stop.received is not None
            save_due = save_due or stopped or run.updates % settings.checkpoint_every == 0
            if save_due and update.at_window_end:
                self._save()
                save_due = False
                if stopped:
                    return False
            begin = perf_counter()
        return True

    def _is_to_be_evaluated(self, before: float) -> bool:
        """After an update, before which the run had taken so many seconds."""
        run, seconds = self._run, self._settings.evaluate_seconds
        if seconds is None:
            return run.updates % self._settings.evaluate_every == 0
        return run.seconds // seconds > before // seconds

    def _updates(self) -> Iterator[Update]:
        """The updates that are left, epoch after epoch."""
        stream = self._streams.train
        while not self._end.is_after(stream.epoch):
            # What the loader says is of one epoch.
            self._waited_before = self._run.waited
            before, whole = self._run.updates, stream.state_dict()["step"] == 0
            yield from self._tbptt.updates(self._loader)
            if whole and self._run.updates == before:
                raise ValueError(
                    f"an epoch of {self._store.uri} gave no update, as no timestep has one to predict: add longer "
                    "sequences"
                )
            self._loader.set_epoch(stream.epoch + 1)

    def _apply(self, update: Update) -> float:
        """Step the optimizer; the norm of the gradient before clipping."""
        run, settings = self._run, self._settings
        loss = float(update.loss)
        norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), settings.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"update {run.updates + 1} has loss {loss} and a gradient of norm {norm}, which must be finite: lower "
                f"the learning rate ({settings.learning_rate}) or clip ({settings.clip}); {self._checkpoint} holds the "
                f"run after update {self._saved_at}"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(run.updates, self._end.expected(run))
        self._optimizer.step()
        self._optimizer.zero_grad()
        run.updates += 1
        run.timesteps += update.num_timesteps
        run.loss_sum += loss * update.num_timesteps
        run.loss_timesteps += update.num_timesteps
        self._position = update.token
        return norm

    def _show(self) -> None:
        run = self._run
        self._reporter.show(
            Progress(
                update=run.updates,
                planned=self._end.expected(run),
                loss=run.mean_loss() or 0.0,
                held_out_loss=run.held_out_loss,
                held_out_at=run.held_out_at,
                seconds=run.seconds,
                unit=self._task.unit,
                timesteps_per_second=run.timesteps / run.seconds,
                peak_rss_bytes=peak_rss_bytes(),
            )
        )

    def _log_training(self, norm: float | None = None) -> None:
        run = self._run
        loss = run.loss_sum / run.loss_timesteps
        self._metrics.append(
            "train",
            run.updates,
            timesteps=run.timesteps,
            loss=loss,
            unit=self._task.unit,
            **self._bits(loss),
            learning_rate=self._optimizer.param_groups[0]["lr"],
            gradient_norm=norm,
            seconds=run.seconds,
            timesteps_per_second=run.loss_timesteps / (run.seconds - run.seconds_then),
        )
        run.loss, run.loss_sum, run.loss_timesteps, run.seconds_then = loss, 0.0, 0, run.seconds

    def _evaluate(self) -> None:
        if self._streams.held_out is None:
            return
        run = self._run
        held_out = StreamLoader(self._streams.held_out, device=self._settings.device)
        result = self._task.evaluate(self._model, held_out)
        baselines: dict[str, Any] = {"baselines": run.baselines} if run.baselines else {}
        self._metrics.append(
            "evaluate",
            run.updates,
            timesteps=result.num_timesteps,
            loss=result.loss,
            unit=self._task.unit,
            **self._bits(result.loss),
            **baselines,
        )
        run.held_out_loss, run.held_out_at = result.loss, run.updates

    def _bits(self, loss: float) -> dict[str, float]:
        unit = self._task.unit
        return {"bits": in_unit(loss, unit)} if unit.startswith(BITS) else {}

    def _finish(self) -> None:
        run = self._run
        if run.loss_timesteps:
            self._log_training()
        if run.held_out_at != run.updates:
            self._evaluate()
        run.finished = True
        self._save()

    def _save(self) -> None:
        """Write the checkpoint. One of a run that is not finished belongs at the end of a window."""
        self._about["peak_rss_bytes"] = max(self._about["peak_rss_bytes"], peak_rss_bytes())
        save_checkpoint(
            self._checkpoint,
            settings=asdict(self._settings) | self._store_settings(),
            model=self._model,
            optimizer=self._optimizer,
            tbptt=self._tbptt,
            stream=self._position,
            run=asdict(self._run),
            task=self._task.as_dict(),
            about=self._about,
        )
        self._saved_at = self._run.updates

    def _store_settings(self) -> dict[str, Any]:
        return {"store_version": self._store.version, "store_fingerprint": self._store.fingerprint}

    def _draw(self, path: Path) -> bool:
        try:
            draw_curves(self._metrics.rows(), path)
        except ImportError as error:
            self._reporter.note(f"{path} was not drawn: {error}")
            return False
        return True

    def _result(self, curves: Path | None) -> TrainingResult:
        run = self._run
        loss = run.mean_loss()
        bits, held_out_bits = (
            None if each is None else self._bits(each).get("bits") for each in (loss, run.held_out_loss)
        )
        return TrainingResult(
            task=self._task.kind,
            unit=self._task.unit,
            loss=loss,
            bits_per_byte=bits,
            held_out_loss=run.held_out_loss,
            held_out_bits_per_byte=held_out_bits,
            baselines=dict(run.baselines),
            updates=run.updates,
            timesteps=run.timesteps,
            timesteps_per_second=run.timesteps / run.seconds if run.seconds else 0.0,
            seconds=run.seconds,
            data_wait_fraction=run.waited / run.seconds if run.seconds else 0.0,
            peak_rss_bytes=peak_rss_bytes(),
            threads=run.threads,
            finished=run.finished,
            stopped_by=None if run.finished or self._stop.received is None else self._stop.received.name,
            out=str(self._folder),
            checkpoint=str(self._checkpoint),
            metrics=str(self._metrics.path),
            curves=None if curves is None else str(curves),
        )
