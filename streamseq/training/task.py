"""Tasks: what is learnt of a store. A task says which fields are read, makes the model and is its loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamseq.data.window import Window
from streamseq.storage.interface import Store
from streamseq.training.evaluate import Evaluation, evaluate
from streamseq.training.model import BYTES, ByteLanguageModel, LanguageModel, next_byte_loss
from streamseq.training.settings import TrainingSettings
from streamseq.training.unit import BITS


class Task(Protocol):
    """What is learnt, resolved from the settings of a run and the fields of its store."""

    @property
    def kind(self) -> str:
        """ "language" or "forecast"."""

    @property
    def unit(self) -> str:
        """In what a loss is shown: "bits/byte", "bits/token" or "mse"."""

    @property
    def inputs(self) -> str | list[str]:
        """The fields that the model gets, see `TBPTT`."""

    @property
    def least(self) -> int:
        """Timesteps of the shortest sequence of which there is something to learn."""

    @property
    def usual_updates(self) -> int:
        """So many updates are made at least where nobody says how many: in 0 or more epochs."""

    def stream_options(self) -> dict[str, Any]:
        """`fields`, `lookahead` and `normalize` of a `StreamDataset` for it."""

    def check(self, store: Store) -> None:
        """Whether a store has the fields of the one that the task was found for.

        Raises:
            ValueError: It has not.
        """

    def as_settings(self) -> dict[str, Any]:
        """The settings that ask for it."""

    def example(self, lanes: int, steps: int) -> Any:
        """Inputs as the model gets them, of any values."""

    def build(self, settings: TrainingSettings) -> nn.Module:
        """The model, with new parameters from torch's random generator, on the CPU."""

    def loss(self, outputs: Any, window: Window) -> Tensor:
        """One loss a timestep."""

    def evaluate(self, model: nn.Module, windows: Iterable[Window]) -> Evaluation:
        """The loss over a stream, see `evaluate`."""

    def describe(self) -> str:
        """What is learnt, in a few words."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which a checkpoint's reader makes the task again."""


USUAL_HIDDEN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageTask:
    """The next byte or token is predicted, with cross-entropy.

    Args:
        field: One integer a timestep, from 0 to V - 1.
        vocabulary: V; 256 are bytes.
        left_out: What else the store has, for the description.
    """

    field: str
    vocabulary: int = BYTES
    left_out: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Of a language model."""
        return "language"

    @property
    def unit(self) -> str:
        """Bits a byte or token."""
        return f"{BITS}/{'byte' if self.vocabulary == BYTES else 'token'}"

    @property
    def inputs(self) -> str:
        """The field."""
        return self.field

    @property
    def least(self) -> int:
        """One, and a next one."""
        return 2

    @property
    def usual_updates(self) -> int:
        """As one epoch gives."""
        return 0

    def stream_options(self) -> dict[str, Any]:
        """The next byte or token is "target"."""
        return {"fields": [self.field], "lookahead": {"target": (self.field, 1)}}

    def check(self, store: Store) -> None:
        """One integer a timestep, of bytes uint8; no token that the model does not know, as far as is known."""
        field = store.fields.get(self.field)
        kinds = "u" if self.vocabulary == BYTES else "iu"
        if field is None or field.shape or field.dtype.kind not in kinds:
            wanted = "uint8" if self.vocabulary == BYTES else f"integers from 0 to {self.vocabulary - 1:,}"
            raise ValueError(
                f"the model reads the field {self.field!r} of {wanted} with step shape (), {store.uri} has "
                f"{listed_fields(store)}: pass a store with such a field"
            )
        kept = store.statistics
        if kept is not None and self.field in kept:
            least, most = int(kept[self.field].min), int(kept[self.field].max)
            if least < 0 or most >= self.vocabulary:
                raise ValueError(
                    f"the model knows tokens from 0 to {self.vocabulary - 1:,}, {self.field!r} of {store.uri} has "
                    f"{least:,} to {most:,}: train one on a store with all tokens"
                )

    def as_settings(self) -> dict[str, Any]:
        """A language model of the field."""
        return {"task": self.kind, "field": self.field}

    def example(self, lanes: int, steps: int) -> Tensor:
        """Random tokens."""
        return torch.randint(0, self.vocabulary, (lanes, steps))

    def build(self, settings: TrainingSettings) -> LanguageModel:
        """Of bytes one that can write."""
        options: dict[str, Any] = {
            name: getattr(settings, name) for name in ("cell", "embedding", "layers", "dropout")
        } | {"hidden": settings.hidden or USUAL_HIDDEN}
        if self.vocabulary == BYTES:
            return ByteLanguageModel(**options)
        return LanguageModel(vocabulary=self.vocabulary, **options)

    def loss(self, outputs: Tensor, window: Window) -> Tensor:
        """In nats."""
        return next_byte_loss(outputs, window)

    def evaluate(self, model: nn.Module, windows: Iterable[Window]) -> Evaluation:
        """The mean over all timesteps with a next one."""
        return evaluate(model, self.loss, windows, inputs=self.inputs)

    def describe(self) -> str:
        """In a few words."""
        what = "byte" if self.vocabulary == BYTES else f"of {self.vocabulary:,} tokens"
        return f"learning the next {what} of {self.field}{named_left_out(self.left_out)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, **asdict(self)}


def listed_fields(store: Store) -> str:
    """The fields of a store, for messages."""
    each = [f"{name} {field.dtype}{list(field.shape) if field.shape else ''}" for name, field in store.fields.items()]
    return ", ".join(each) or "no field"


def named_left_out(names: Sequence[str]) -> str:
    """How a description ends."""
    return f"; left out: {', '.join(names)}" if names else ""
