"""The settings of a training run, and the learning rate that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch

from streamseq.core.grid import Grid
from streamseq.core.sizes import parse_bytes
from streamseq.core.splits import AsIs, Domain, Naive, Split

# What may be another at each resume: it does not decide the parameters, or no more than their last bits.
_FREE = frozenset({"threads", "device", "log_every", "evaluate_every", "evaluate_seconds", "checkpoint_every"})

TASKS = ("auto", "language", "forecast")
NAIVE, AS_IS, DOMAIN = "naive", "as-is", "domain:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """All that decides a run of the reference trainer, beside the store.

    Args:
        k1: Timesteps between updates; None: n, the whole sequence.
        k2: Timesteps that back-propagation reaches; None: n.
        split: How long sequences are cut into windows: "naive", by length; "as-is": not at all; "domain:NAME": also
            where the stored boundaries of that name are, see `ss.mark`; of several names with commas between them, at
            all of them. What is held out is gone through as with "naive" in any case, so that losses compare.
        lanes: Sequences side by side, B.
        window: Timesteps read at once; None: k1, or 256 where k1 is n. As they are, sequences are read whole.
        segment: Timesteps whose activations live at once; None: as `TBPTT` has it.
        memory: A budget for an update such as "500MB", which chooses the segment; None: none.
        burn_in: Timesteps that are run before the start of a lane in the middle of a sequence, to find its state.
        task: "language": the next byte or token of a field is predicted; "forecast": numbers some timesteps ahead;
            "auto": what goes with the fields of the store, see `find_task`.
        field: The field of a language model: one byte or token a timestep.
        inputs: The fields that a forecast is made from; None: all of floats.
        targets: The fields that are forecast; None: the inputs.
        horizon: How many timesteps ahead.
        layout: "sequences" or "even", see `StreamDataset`; None: "even" where there are fewer sequences than lanes
            and k1 and k2 are not n.
        shuffle: Whether sequences are taken in a random order.
        held_out: The share of the sequences that is not trained on but evaluated; 0: none.
        held_out_timesteps: How many timesteps of them are evaluated at most.
        seed: Of the parameters, the shuffling, the split and dropout.
        epochs: How often all sequences are seen, where `updates` and `seconds` are None; None: once, or for a forecast
            as often as gives 400 updates.
        updates: How many updates are made; None: as many as the epochs give, or the seconds.
        seconds: How long training takes at most, over all parts of a run that is resumed: the run ends with the update
            in which they are over. Evaluations and checkpoints do not count. The learning rate falls by them, and what
            a machine that is faster or slower comes to is something else.
        cell, embedding, layers, dropout: See `LanguageModel` and `ForecastModel`.
        hidden: Units of a layer; None: 256, or 64 for a forecast.
        learning_rate: Of Adam, at its highest.
        final_learning_rate: To which it falls on a cosine until the end of the run, as a share of the highest.
        warmup: Updates over which it rises from 0.
        clip: The largest 2-norm of the gradient; a longer one is scaled down.
        threads: torch's number of threads; None: probed, and on resume what the run had.
        device: Where the model is.
        log_every, evaluate_every, checkpoint_every: Updates from one to the next.
        evaluate_seconds: Seconds of training from one evaluation to the next, in place of `evaluate_every`; None: that.

    Raises:
        ValueError: A number is out of its range.
        TypeError: k1 or k2 is not an integer.
    """

    k1: int | None = 128
    k2: int | None = 256
    split: str = "naive"
    lanes: int = 32
    window: int | None = None
    segment: int | None = None
    memory: int | str | None = None
    burn_in: int = 0
    task: str = "auto"
    field: str = "x"
    inputs: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    horizon: int = 1
    layout: str | None = None
    shuffle: bool = True
    held_out: float = 0.05
    held_out_timesteps: int = 1 << 20
    seed: int = 0
    epochs: int | None = None
    updates: int | None = None
    seconds: float | None = None
    cell: str = "lstm"
    hidden: int | None = None
    embedding: int = 64
    layers: int = 1
    dropout: float = 0.0
    learning_rate: float = 4e-3
    final_learning_rate: float = 0.05
    warmup: int = 100
    clip: float = 1.0
    threads: int | None = None
    device: str = "cpu"
    log_every: int = 20
    evaluate_every: int = 500
    evaluate_seconds: float | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        Grid(k1=self.k1, k2=self.k2)
        _check("task", repr(self.task), self.task in TASKS, f"one of {', '.join(TASKS)}")
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        named = self.inputs is not None or self.targets is not None
        if self.task == "language" and (named or self.horizon != 1):
            raise ValueError(
                f"inputs, targets and horizon are of forecasts, got inputs={self.inputs}, targets={self.targets}, "
                f"horizon={self.horizon} for task=language: name its field by field={self.field!r}"
            )
        for name in ("lanes", "horizon", "held_out_timesteps", "log_every", "evaluate_every", "checkpoint_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("window", "hidden", "epochs", "threads"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "at least 1")
        _check("updates", self.updates, self.updates is None or self.updates >= 0, "at least 0")
        for name in ("seconds", "evaluate_seconds"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 < value < math.inf, "a number above 0")
        _check_split(self.split, self.window)
        _check("burn_in", self.burn_in, self.burn_in >= 0, "at least 0")
        if self.memory is not None:
            _check("memory", self.memory, self.segment is None, "given without segment, which it chooses")
            parse_bytes(self.memory)
        _check("warmup", self.warmup, self.warmup >= 0, "at least 0")
        _check("held_out", self.held_out, 0 <= self.held_out < 1, "a share in [0, 1)")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "a number above 0")
        _check("final_learning_rate", self.final_learning_rate, 0 <= self.final_learning_rate <= 1, "a share in [0, 1]")
        _check_device(self.device)
        _check("clip", self.clip, self.clip > 0, "above 0 (float('inf') for no clipping)")

    @property
    def window_length(self) -> int:
        """Timesteps of a window."""
        return self.window or self.k1 or 256

    @property
    def splitting(self) -> Split:
        """The split, as `StreamDataset` takes it."""
        if self.split == AS_IS:
            return AsIs()
        if self.split == NAIVE:
            return Naive()
        return Domain(self.split.removeprefix(DOMAIN).split(","))

    def bound(self) -> dict[str, Any]:
        """The settings that a resumed run must share with its checkpoint."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> Self:
        """The settings among the values that a checkpoint was saved with; others as they are by default."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def learning_rate_at(self, update: int, planned: int) -> float:
        """The learning rate of an update: a linear rise, then a cosine down.

        Args:
            update: From 0.
            planned: How many there will be.
        """
        rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
        fall = (1 + math.cos(math.pi * min(1.0, update / max(1, planned)))) / 2
        return self.learning_rate * rise * (self.final_learning_rate + (1 - self.final_learning_rate) * fall)


def _names(what: str, given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = tuple(given) if isinstance(given, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{what} is a list of the names of fields, each once, got {given!r}")
    return names


def _check_split(split: str, window: int | None) -> None:
    named = split.startswith(DOMAIN) and all(split.removeprefix(DOMAIN).split(","))
    _check("split", repr(split), split in (NAIVE, AS_IS) or named, f"{NAIVE}, {AS_IS} or {DOMAIN}NAME")
    if split == AS_IS and window is not None:
        raise ValueError(f"split={AS_IS} reads sequences whole, got window={window}: leave the window out")


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is one that torch knows, such as cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} needs a GPU and a torch that was built for it: use cpu")


def _check(name: str, value: object, right: bool, rule: str) -> None:
    if not right:
        raise ValueError(f"{name} is {rule}, got {value}")
