"""From settings to the parts of a run: task, streams and model."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from streamseq.core.errors import ResumeError
from streamseq.core.splits import AsIs
from streamseq.data.dataset import StreamDataset
from streamseq.storage.interface import Store
from streamseq.training.checkpoint import read_checkpoint
from streamseq.training.choose_task import find_task, task_of_saved
from streamseq.training.holdout import Holdout, Span, hold_out
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import Task

# The logits of a byte are a kilobyte a timestep.
EVALUATED_AT_ONCE = 8192
# The same for all settings, so that what candidates of a search come to compares; and no lane has a run so short that
# the start from a zero state counts.
EVALUATION_LANES, EVALUATION_RUN = 32, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What is trained on, and what is held out (None for nothing); the split itself, and the task that they are for."""

    train: StreamDataset
    held_out: StreamDataset | None
    split: Holdout
    task: Task


def build_streams(store: Store, settings: TrainingSettings, task: Task | None = None) -> Streams:
    """The streams of a run, with what its task reads.

    Args:
        store: What is trained on.
        settings: Of the run.
        task: Of the run; None: found.

    Raises:
        ValueError: The store has nothing that the task could learn, or fields unlike those of the given one; or there
            are too few timesteps.
    """
    if task is None:
        task = find_task(store, settings)
    else:
        task.check(store)
    split = hold_out(
        store, share=settings.held_out, seed=settings.seed, limit=settings.held_out_timesteps, least=task.least
    )
    return Streams(
        train=_training_stream(store, settings, task, split.train),
        held_out=_held_out_stream(store, task, split.held_out) if split.held_out else None,
        split=split,
        task=task,
    )


def _training_stream(store: Store, settings: TrainingSettings, task: Task, spans: list[Span]) -> StreamDataset:
    split, layout = settings.splitting, settings.layout
    whole = isinstance(split, AsIs)
    if layout is None:
        # With fewer sequences than lanes some lanes would always be idle; but n is the length of a whole sequence.
        cut = len(spans) < settings.lanes and settings.k1 is not None and settings.k2 is not None and not whole
        layout = "even" if cut else "sequences"
    return StreamDataset(
        store,
        settings.lanes,
        None if whole else settings.window_length,
        sequences=spans,
        split=split,
        shuffle=settings.shuffle,
        seed=settings.seed,
        layout=layout,
        **task.stream_options(),
    )


def _held_out_stream(store: Store, task: Task, spans: list[Span]) -> StreamDataset:
    lanes = min(EVALUATION_LANES, max(len(spans), sum(stop - start for _, start, stop in spans) // EVALUATION_RUN))
    return StreamDataset(
        store,
        lanes,
        EVALUATED_AT_ONCE // lanes,
        sequences=spans,
        layout="even" if len(spans) < lanes else "sequences",
        **task.stream_options(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model that the trainer has trained, in eval mode on the CPU; the settings of its run, and what it learnt.

    The settings name the task, where those of the run left that to the store.
    """

    model: nn.Module
    settings: TrainingSettings
    task: Task


def load_run(path: str | os.PathLike[str]) -> TrainedModel:
    """What a checkpoint of the trainer holds, for use.

    Raises:
        ResumeError: It is no such checkpoint.
    """
    content = read_checkpoint(path)
    parts: dict[str, Any] = content["parts"]
    if "model" not in parts:
        raise ResumeError(f"{path} holds {', '.join(parts)}, no model: pass a checkpoint of the trainer")
    settings = replace(TrainingSettings.from_saved(content["settings"]), device="cpu")
    task = task_of_saved(parts.get("task"), settings)
    model = task.build(settings)
    model.load_state_dict(parts["model"])
    return TrainedModel(model=model.eval(), settings=replace(settings, **task.as_settings()), task=task)


def load_model(path: str | os.PathLike[str]) -> tuple[nn.Module, TrainingSettings]:
    """The model of a checkpoint that the trainer wrote, in eval mode on the CPU, and the settings of its run.

    Raises:
        ResumeError: It is no such checkpoint.
    """
    run = load_run(path)
    return run.model, run.settings
