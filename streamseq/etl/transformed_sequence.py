"""One sequence on its way through transforms: what is checked, counted and named in errors at each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamseq.core.fields import Field
from streamseq.etl.source import Piece
from streamseq.etl.transforms_base import (
    Arrays,
    BadTimestepError,
    Operator,
    Transform,
    TransformError,
    describe,
    num_steps,
)
from streamseq.storage.shards.shard_writer import check_arrays


@dataclass(slots=True)
class Stage:
    """One transform at work on one sequence.

    Args:
        transform: What is done.
        fields: What comes out.
        operator: What does it.
        taken: Timesteps so far.
    """

    transform: Transform
    fields: Mapping[str, Field]
    operator: Operator
    taken: int = 0

    def push(self, arrays: Arrays, where: str) -> Iterator[Arrays]:
        """Put timesteps through it; `where` names the sequence."""
        try:
            for made in self.operator.push(arrays):
                yield self._checked(made)
        except TransformError:
            raise
        except BadTimestepError as error:
            raise TransformError(
                f"{self.transform}, timestep {self.taken + error.timestep} of {where}: {error}"
            ) from error
        except Exception as error:
            last = self.taken + num_steps(arrays) - 1
            raise TransformError(
                f"{self.transform}, timesteps {self.taken} to {last} of {where}: {describe(error)}"
            ) from error
        self.taken += num_steps(arrays)

    def end(self, where: str) -> Iterator[Arrays]:
        """Put out what it held back, if it was given anything."""
        if not self.taken:
            return
        try:
            for made in self.operator.end():
                yield self._checked(made)
        except BadTimestepError as error:
            raise TransformError(
                f"{self.transform}, timestep {self.taken + error.timestep} of {where}: {error}"
            ) from error
        except Exception as error:
            raise TransformError(
                f"{self.transform}, end of {where} after {self.taken} timesteps: {describe(error)}"
            ) from error

    def _checked(self, made: Arrays) -> Arrays:
        if made.keys() != self.fields.keys():
            raise ValueError(f"it makes the fields {', '.join(self.fields)}, this time it made {', '.join(made)}")
        return check_arrays(self.fields, made)[0]


class TransformedSequence:
    """The part of one sequence that one task puts out.

    Args:
        id: Its id.
        stages: The transforms.
        fields: What comes out of the last one.
        block_steps: How many timesteps are put through at once.
        continued: It began in a partition before.
        expected: A piece of it is put out, if only of no timesteps.
    """

    def __init__(
        self,
        id: str,
        stages: Sequence[Stage],
        fields: Mapping[str, Field],
        block_steps: int,
        *,
        continued: bool,
        expected: bool,
    ) -> None:
        self.id = id
        self._stages, self._fields, self._block_steps = stages, fields, block_steps
        self._continued, self._expected = continued, expected
        self._where = f"the part of sequence {id!r} in its partition" if continued else f"sequence {id!r}"
        self._attrs: Mapping[str, Any] | None = None
        self._taken = 0
        self._made = 0
        self._limit: int | None = None

    def push(self, arrays: Arrays, attrs: Mapping[str, Any] | None) -> Iterator[Piece]:
        """Put the next timesteps through."""
        if attrs is not None:
            self._attrs = attrs
        steps = num_steps(arrays)
        self._taken += steps
        for start in range(0, steps, self._block_steps):
            block = {name: values[start : start + self._block_steps] for name, values in arrays.items()}
            yield from self._pieces(self._through(0, block))

    def limit(self, before: int) -> None:
        """What comes in from here on is only there for what came before; and for the first `before` after that.

        These are another task's where the sequence was continued, as those of its own start were.
        """
        self._limit = self._taken + (0 if self._continued else before)

    def end(self) -> Iterator[Piece]:
        """The sequence has ended."""
        for number, stage in enumerate(self._stages):
            for made in stage.end(self._where):
                yield from self._pieces(self._through(number + 1, made))
        yield from self._rest()

    def leave(self) -> Iterator[Piece]:
        """The sequence goes on, in another task.

        Raises:
            TransformError: Not all that this task has to put out came.
        """
        if self._limit is not None and self._made < self._limit:
            names = ", ".join(str(stage.transform) for stage in self._stages)
            raise TransformError(
                f"{names}: a transform with state is `in_order`, others put out a timestep as soon as `after` more are "
                f"there; of {self._where} {self._limit - self._made} timesteps are missing"
            )
        yield from self._rest()

    def _rest(self) -> Iterator[Piece]:
        if self._expected:
            empty = {name: np.empty((0, *field.shape), field.dtype) for name, field in self._fields.items()}
            yield self._piece(empty)

    def _through(self, number: int, arrays: Arrays) -> Iterator[Arrays]:
        """Put timesteps through the stages from `number` on."""
        if number == len(self._stages):
            yield arrays
            return
        if num_steps(arrays):
            for made in self._stages[number].push(arrays, self._where):
                yield from self._through(number + 1, made)

    def _pieces(self, made: Iterable[Arrays]) -> Iterator[Piece]:
        for arrays in made:
            steps = num_steps(arrays)
            left = steps if self._limit is None else min(steps, self._limit - self._made)
            if left > 0:
                self._made += left
                yield self._piece({name: values[:left] for name, values in arrays.items()})

    def _piece(self, arrays: Arrays) -> Piece:
        attrs, self._attrs, self._expected = self._attrs, None, False
        return Piece(id=self.id, arrays=arrays, attrs=attrs)
