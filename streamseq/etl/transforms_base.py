"""What a transform is: an operator over the timesteps of one sequence, which come in pieces of any length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import StreamseqError
from streamseq.core.fields import Field
from streamseq.etl.transforms_fingerprint import fingerprint_of

Arrays = dict[str, NDArray[Any]]
"""One array `[n, *D]` per field, all of the same n."""

# What a transform puts out at once stays about this small: what it makes on the way then lies in a core's cache, and
# two threads wait neither for memory nor for its allocation.
BLOCK_BYTES = 1 << 19
_PROBE_STEPS = 3


class TransformError(StreamseqError):
    """A transform failed; the message names it, the sequence and the timesteps."""


class BadTimestepError(ValueError):
    """A timestep that a transform refuses.

    Args:
        timestep: Its place in the arrays that the operator was given.
        reason: What is wrong with it.
    """

    def __init__(self, timestep: int, reason: str) -> None:
        super().__init__(timestep, reason)
        self.timestep = timestep
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Operator(Protocol):
    """A transform at work on one sequence."""

    def push(self, arrays: Arrays) -> Iterable[Arrays]:
        """Take the next timesteps, at least one, and give those that are ready; others may be held back."""
        ...

    def end(self) -> Iterable[Arrays]:
        """Give what was held back: the sequence has ended, after at least one timestep."""
        ...


class Transform(ABC):
    """Makes the timesteps of a sequence from those of another. A value that can be pickled.

    Derive from `Stepwise`, `Halo` or `InOrder`, by what a timestep depends on.
    """

    @property
    def before(self) -> int:
        """How many timesteps before its own a timestep depends on."""
        return 0

    @property
    def after(self) -> int:
        """How many timesteps after its own a timestep depends on."""
        return 0

    @property
    def in_order(self) -> bool:
        """Whether it needs sequences from their start: it has a state, or changes the number of timesteps."""
        return False

    @property
    def threads(self) -> bool:
        """Whether most of its work lets go of the interpreter lock, as numpy does."""
        return True

    @property
    def length_ratio(self) -> float:
        """About how many timesteps come out for one that goes in."""
        return 1.0

    @property
    def working_steps(self) -> int:
        """How many timesteps it lays out for one that comes out."""
        return 1

    @abstractmethod
    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """Return the fields that come out, of those that go in.

        Raises:
            ValueError: It cannot work on these fields.
        """

    @abstractmethod
    def begin(self, id: str, *, continued: bool = False) -> Operator:
        """Begin with a sequence.

        Args:
            id: Its id.
            continued: The first timestep that comes is not the sequence's first one. What depends on timesteps before
                it is not given. Never with `in_order`.
        """

    @property
    def fingerprint(self) -> str:
        """A hash of its class, its settings and the code of the functions in them; the same in every process."""
        return fingerprint_of(self._identity())

    def _identity(self) -> object:
        """What its fingerprint is of."""
        return self

    def __str__(self) -> str:
        name = type(self).__name__
        # Of a dataclass, the first of its settings says what it works on.
        value = next((getattr(self, field) for field in getattr(self, "__dataclass_fields__", ())), None)
        if isinstance(value, str):
            return f"{name}({value!r})"
        if callable(value):
            return f"{name}({getattr(value, '__qualname__', type(value).__name__)})"
        return name


class Stepwise(Transform):
    """A transform each of whose timesteps depends on the same timestep of its input only."""

    @abstractmethod
    def apply(self, arrays: Arrays) -> Arrays:
        """Make timesteps from as many others."""

    def begin(self, id: str, *, continued: bool = False) -> Operator:
        """Begin with a sequence."""
        return _StepwiseOperator(self)


class _StepwiseOperator:
    def __init__(self, transform: Stepwise) -> None:
        self._transform = transform

    def push(self, arrays: Arrays) -> Iterable[Arrays]:
        return [_same_steps(self._transform.apply(arrays), num_steps(arrays))]

    def end(self) -> Iterable[Arrays]:
        return []


class Halo(Transform):
    """A transform each of whose timesteps depends on a few timesteps `before` and `after` it as well."""

    @abstractmethod
    def apply(self, arrays: Arrays, lead: int, trail: int) -> Arrays:
        """Make timesteps from as many others and those around them.

        Args:
            arrays: Of `lead` + n + `trail` timesteps. Errors name places in them.
            lead: Timesteps before the n: `before` of them, or fewer where the first one is the sequence's first.
            trail: Timesteps after the n: `after` of them, or none where the last one is the sequence's last.

        Returns:
            n timesteps.
        """

    def begin(self, id: str, *, continued: bool = False) -> Operator:
        """Begin with a sequence."""
        return _HaloOperator(self, self.before if continued else 0)


class _HaloOperator:
    """Keeps the timesteps around the next one.

    Args:
        transform: What is done.
        first: The place of the first timestep to put out.
    """

    def __init__(self, transform: Halo, first: int) -> None:
        self._transform = transform
        #: The timesteps that are still needed, and the place in them of the next one to put out.
        self._kept: Arrays | None = None
        self._next = first

    def push(self, arrays: Arrays) -> Iterable[Arrays]:
        joined = arrays if self._kept is None else join(self._kept, arrays)
        steps = num_steps(joined)
        trail = self._transform.after
        made = []
        if steps - trail > self._next:
            made.append(self._apply(joined, trail, steps - num_steps(arrays)))
            self._next = steps - trail
        drop = max(0, self._next - self._transform.before)
        # A copy where little is kept of much: a view would keep all of it.
        self._kept = {name: values[drop:].copy() if drop else values[drop:] for name, values in joined.items()}
        self._next -= drop
        return made

    def end(self) -> Iterable[Arrays]:
        if self._kept is None or num_steps(self._kept) <= self._next:
            return []
        return [self._apply(self._kept, 0, num_steps(self._kept))]

    def _apply(self, arrays: Arrays, trail: int, old: int) -> Arrays:
        """Put out what comes next; `old` of the timesteps were there before."""
        try:
            made = self._transform.apply(arrays, self._next, trail)
            return _same_steps(made, num_steps(arrays) - self._next - trail)
        except BadTimestepError as error:
            raise BadTimestepError(error.timestep - old, error.reason) from None


class InOrder(Transform):
    """A transform that needs a sequence from its first timestep on; sequences are still gone through in parallel."""

    @property
    def in_order(self) -> bool:
        """True."""
        return True


def _same_steps(made: Arrays, steps: int) -> Arrays:
    for name, values in made.items():
        if values.ndim < 1 or len(values) != steps:
            raise ValueError(f"it makes a timestep of each, {name!r} has shape {list(values.shape)} for {steps}")
    return made


def num_steps(arrays: Mapping[str, NDArray[Any]]) -> int:
    """The number of timesteps of arrays."""
    return len(next(iter(arrays.values())))


def join(first: Arrays, second: Arrays) -> Arrays:
    """Timesteps, and those after them."""
    return {name: np.concatenate([values, second[name]]) for name, values in first.items()}


def take(fields: Mapping[str, Field], name: str, who: object) -> Field:
    """The field that a transform works on.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in fields:
        raise ValueError(f"{who} needs the field {name!r}, there is {', '.join(map(repr, fields))}: name one of those")
    return fields[name]


def put(fields: Mapping[str, Field], name: str, into: str | None, field: Field, who: object) -> dict[str, Field]:
    """The fields with one that a transform changes, or makes beside it.

    Raises:
        ValueError: The new one has the name of another.
    """
    if into is not None and into in fields:
        raise ValueError(f"{who} makes a new field, there is a field {into!r} already: choose another name")
    return {**fields, into or name: field}


def holds(field: Field, value: float) -> bool:
    """Whether a field can hold a number."""
    if field.dtype.kind == "f":
        return True
    low, high = (0, 1) if field.dtype.kind == "b" else (np.iinfo(field.dtype).min, np.iinfo(field.dtype).max)
    return bool(np.isfinite(value)) and value == int(value) and low <= int(value) <= high


def float_like(field: Field) -> np.dtype[Any]:
    """The dtype of real results: float64 of float64, otherwise float32."""
    return np.dtype("float64" if field.dtype == np.float64 else "float32")


def probe(
    function: Callable[[Arrays], Any],
    fields: Mapping[str, Field],
    given: Mapping[str, Field] | None,
    who: object,
    window: tuple[int, ...] = (),
    *,
    any_steps: bool = False,
) -> dict[str, Field]:
    """The fields that a function puts out: those given, or those it makes of timesteps of zeros.

    Args:
        function: Takes arrays `[n, *window, *D]`, returns arrays `[n, *D]`.
        fields: Of its input.
        given: What it puts out; None to try.
        who: The transform, for errors.
        window: What stands between timesteps and step shape.
        any_steps: It may return another number of timesteps.

    Raises:
        ValueError: The function fails, or does not return what it has to.
    """
    if given is not None:
        return dict(given)
    zeros = {name: np.zeros((_PROBE_STEPS, *window, *field.shape), field.dtype) for name, field in fields.items()}
    remedy = "give fields= if it cannot be tried on zeros"
    try:
        made = named_arrays(function(zeros))
    except Exception as error:
        raise ValueError(f"{who} fails on timesteps of zeros with {describe(error)}: {remedy}") from error
    for name, values in made.items():
        if values.ndim < 1 or (len(values) != _PROBE_STEPS and not any_steps):
            raise ValueError(
                f"{who} puts out as many timesteps as it gets, field {name!r} has shape {list(values.shape)} for "
                f"{_PROBE_STEPS} timesteps: use Scan or a transform of your own where their number changes"
            )
    return {name: Field(values.dtype, values.shape[1:]) for name, values in made.items()}


def named_arrays(returned: object) -> Arrays:
    """What a user's function returned, as arrays by field.

    Raises:
        TypeError: It is not a mapping.
    """
    if not isinstance(returned, Mapping) or not returned:
        raise TypeError(f"a function returns a dict of arrays by field, got {type(returned).__name__}")
    return {str(name): np.asarray(values) for name, values in returned.items()}


def describe(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
