"""From settings to the parts of a run: streams and model."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamseq.core.errors import ResumeError
from streamseq.core.splits import AsIs
from streamseq.data.dataset import StreamDataset
from streamseq.storage.interface import Store
from streamseq.training.checkpoint import read_checkpoint
from streamseq.training.holdout import Holdout, Span, hold_out
from streamseq.training.model import ByteLanguageModel
from streamseq.training.settings import TrainingSettings

EVALUATED_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What is trained on, and what is held out (None for nothing); the split itself."""

    train: StreamDataset
    held_out: StreamDataset | None
    split: Holdout


def build_streams(store: Store, settings: TrainingSettings) -> Streams:
    """The streams of a run, each with the next byte as "target".

    Raises:
        ValueError: The field is not one byte a timestep, or there are too few timesteps.
    """
    field = store.fields.get(settings.field)
    if field is None:
        raise ValueError(
            f"training reads the field {settings.field!r}, {store.uri} has {', '.join(store.fields)}: name one of them"
        )
    if field.dtype != np.uint8 or field.shape:
        raise ValueError(
            f"training learns bytes, a field of uint8 with step shape (), and {settings.field!r} of {store.uri} is "
            f"{field.dtype} with {field.shape}: name another field, or write a loop of your own around ss.TBPTT"
        )
    split = hold_out(store, share=settings.held_out, seed=settings.seed, limit=settings.held_out_timesteps)
    return Streams(
        train=_training_stream(store, settings, split.train),
        held_out=_held_out_stream(store, settings, split.held_out) if split.held_out else None,
        split=split,
    )


def _training_stream(store: Store, settings: TrainingSettings, spans: list[Span]) -> StreamDataset:
    split = settings.splitting
    window = None if isinstance(split, AsIs) else settings.window_length
    options: dict[str, Any] = {"split": split, "shuffle": settings.shuffle}
    return _stream(store, settings, spans, window, whole=isinstance(split, AsIs), **options)


def _held_out_stream(store: Store, settings: TrainingSettings, spans: list[Span]) -> StreamDataset:
    # The logits of a window are a kilobyte a timestep.
    return _stream(store, settings, spans, max(1, EVALUATED_AT_ONCE // settings.lanes))


def _stream(
    store: Store,
    settings: TrainingSettings,
    spans: list[Span],
    window: int | None,
    *,
    whole: bool = False,
    **options: Any,
) -> StreamDataset:
    layout = settings.layout
    if layout is None:
        # With fewer sequences than lanes some lanes would always be idle; but n is the length of a whole sequence.
        cut = len(spans) < settings.lanes and settings.k1 is not None and settings.k2 is not None
        layout = "even" if cut and not whole else "sequences"
    return StreamDataset(
        store,
        settings.lanes,
        window,
        sequences=spans,
        fields=[settings.field],
        lookahead={"target": (settings.field, 1)},
        seed=settings.seed,
        layout=layout,
        **options,
    )


def planned_updates(stream: StreamDataset, settings: TrainingSettings) -> int:
    """How many updates a run makes; without a number in the settings, about as many as its epochs give."""
    if settings.updates is not None:
        return settings.updates
    if settings.k1 is None:
        return settings.epochs * _num_cohorts(stream)
    if stream.window is None:
        return settings.epochs * sum(-(-stream.plan.window_length(step) // settings.k1) for step in range(len(stream)))
    return settings.epochs * -(-len(stream) * stream.window // settings.k1)


def _num_cohorts(stream: StreamDataset) -> int:
    """Windows at which every lane starts anew."""
    count = 0
    for first in range(0, len(stream), 4096):
        cells = stream.plan.cells(first, min(first + 4096, len(stream)), 0, stream.lanes)
        count += int((cells.reset | (cells.sequence < 0)).all(1).sum())
    return count


def build_model(settings: TrainingSettings) -> ByteLanguageModel:
    """The model that the settings describe, with new parameters from torch's random generator."""
    return ByteLanguageModel(
        cell=settings.cell,
        hidden=settings.hidden,
        embedding=settings.embedding,
        layers=settings.layers,
        dropout=settings.dropout,
    ).to(settings.device)


def load_model(path: str | os.PathLike[str]) -> tuple[ByteLanguageModel, TrainingSettings]:
    """The model of a checkpoint that the trainer wrote, in eval mode on the CPU, and the settings of its run.

    Raises:
        ResumeError: It is no such checkpoint.
    """
    content = read_checkpoint(path)
    if "model" not in content["parts"]:
        raise ResumeError(f"{path} holds {', '.join(content['parts'])}, no model: pass a checkpoint of the trainer")
    settings = replace(TrainingSettings.from_saved(content["settings"]), device="cpu")
    model = build_model(settings)
    model.load_state_dict(content["parts"]["model"])
    return model.eval(), settings
