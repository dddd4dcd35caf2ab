"""A short training of a small reference model on a sample: a probe that has seen the data, and how much it learnt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.search.memoryless import memoryless_loss
from streamseq.search.sample import Sample, Span
from streamseq.tbptt.engine import TBPTT
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import Task

#: Lanes of the training; what is left of sequences is cut for them.
LANES = 32
_LEARNING_RATE, _FINAL, _WARMUP, _CLIP, _BETAS = 8e-3, 0.05, 20, 1.0, (0.9, 0.99)
# Of the loss without a past; a model that gains less has learnt nothing of it.
_LEARNT = 0.02
# Timesteps that are held out, at most.
_EVALUATED = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTraining:
    """What a short training was, and what came of it.

    Args:
        k1, k2: With which it was trained.
        updates, timesteps: How long.
        seconds: That it took.
        unit: Of the losses: "nats", or "mse".
        loss: On pieces that are held out, a timestep.
        without: The loss there of a forecast from the newest timestep alone, see `memoryless_loss`.
    """

    k1: int
    k2: int
    updates: int
    timesteps: int
    seconds: float
    unit: str
    loss: float
    without: float

    @property
    def gain(self) -> float:
        """What the past is worth to it, a timestep."""
        return self.without - self.loss

    @property
    def learnt(self) -> bool:
        """Whether it is worth something, so that the influence of states says something of the data."""
        return self.gain > _LEARNT * self.without


def train_probe(
    sample: Sample,
    task: Task,
    settings: TrainingSettings,
    *,
    updates: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[nn.Module, ProbeTraining]:
    """Train a model until so many updates are made or the time is over; it is in eval mode afterwards.

    Args:
        sample: What it is trained and evaluated on.
        task: What it learns.
        settings: Of the model, its seed, k1 and k2.
        updates: How many, at most.
        seconds: How long, at most; one update is made in any case.
        clock: Seconds.

    Raises:
        ValueError: The sample has no timestep with something to learn.
    """
    assert settings.k1 is not None
    assert settings.k2 is not None
    began = clock()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = task.build(settings)
        train = [span for span in sample.train if span[2] - span[1] >= task.least]
        lanes = min(LANES, max(1, sum(stop - start for _, start, stop in train) // settings.k1))
        stream = _stream(sample, task, train, lanes, settings.k1, shuffle=True, seed=settings.seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE, betas=_BETAS)
        tbptt = TBPTT(model, task.loss, k1=settings.k1, k2=settings.k2, inputs=task.inputs)
        done, timesteps = 0, 0
        more = True
        while more:
            more = False
            for update in tbptt.updates(StreamLoader(stream)):
                # By updates, not by the clock: where there is time for all of them, the model is the same again.
                share = done / updates
                for group in optimizer.param_groups:
                    group["lr"] = _LEARNING_RATE * min(1.0, (done + 1) / _WARMUP) * (1 - (1 - _FINAL) * share)
                nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
                optimizer.step()
                optimizer.zero_grad()
                done += 1
                timesteps += update.num_timesteps
                more = done < updates and clock() - began < seconds
                if not more:
                    break
            stream.set_epoch(stream.epoch + 1)
    if not done:
        raise ValueError("a probe training needs a timestep with something to learn, got none: add longer sequences")
    held_out = [span for span in _beginnings(sample.held_out or train) if span[2] - span[1] >= task.least] or train
    model.eval()
    loss = task.evaluate(model, _stream(sample, task, held_out, min(LANES, len(held_out)), 128)).loss
    return model, ProbeTraining(
        k1=settings.k1,
        k2=settings.k2,
        updates=done,
        timesteps=timesteps,
        seconds=clock() - began,
        unit="mse" if task.kind == "forecast" else "nats",
        loss=loss,
        without=memoryless_loss(task, sample, train, held_out),
    )


def _stream(
    sample: Sample, task: Task, spans: list[Span], lanes: int, window: int, *, shuffle: bool = False, seed: int = 0
) -> StreamDataset:
    options = task.stream_options()
    return StreamDataset(
        sample.store, lanes, window, sequences=spans, layout="even", shuffle=shuffle, seed=seed, **options
    )


def _beginnings(spans: tuple[Span, ...] | list[Span]) -> list[Span]:
    """What is evaluated: of each span as much."""
    each = max(2, _EVALUATED // max(1, len(spans)))
    return [(id, start, min(stop, start + each)) for id, start, stop in spans]
