"""A source whose sequences go through transforms, right wherever its pieces and partitions end.

How partitions become tasks depends on the transforms, of which B timesteps before and A after a timestep it depends on.
Where a partition ends inside a sequence, at timestep S, its task reads on in the next one as far as S + B + A, and puts
out what is before S + B; the task of the next one begins its output there. Where a transform needs sequences from their
start, a task goes on to the end of its last sequence, and the next task leaves that out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamseq.core.fields import Field, check_fields
from streamseq.etl.identity import code_of
from streamseq.etl.source import Partition, Piece, Skipped, Source, SourceError
from streamseq.etl.transformed_sequence import Stage, TransformedSequence
from streamseq.etl.transforms_base import BLOCK_BYTES, Arrays, Transform, num_steps
from streamseq.etl.transforms_fingerprint import fingerprint_of
from streamseq.etl.transforms_text import transform_of
from streamseq.storage.shards.shard_writer import check_arrays

# A partition with so many times the bytes of the timesteps that another one reads in it does have them, as good as
# surely: input may be compressed, or hold more than the fields.
_MARGIN = 64
# Where partitions say nothing of their bytes, so many are looked through.
_MOST_FOLLOWING = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContent:
    """What one task reads of the partitions of a source.

    Args:
        own: The partitions that it goes through and answers for.
        following: Those in which it reads on with its last sequence.
        to_the_end: Whether that sequence ends in these.
    """

    own: tuple[Partition, ...]
    following: tuple[Partition, ...] = ()
    to_the_end: bool = True


class TransformedSource:
    """A source whose sequences go through transforms, one after the other: what `ss.ingest(..., transforms=...)` makes.

    Args:
        source: Where the data comes from.
        transforms: Of `streamseq.etl.transforms`, functions of a dict of arrays, or text as `parse_transform` takes it.

    Raises:
        TypeError: Something is no transform.
        ValueError: A transform does not fit the fields.

    Example:
        >>> import tempfile, streamseq as ss
        >>> from pathlib import Path
        >>> from streamseq.etl.transforms import Filter
        >>> from streamseq_pipelines.text import TextSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_bytes(bytes([10, 20, 60]))
        ...     transforms = [Filter("x", [0.5, 0.5], ahead=0), lambda arrays: {"y": arrays["x"]}]
        ...     report = ss.ingest(TransformedSource(TextSource([folder]), transforms), folder + "/filtered.zarr")
        ...     ss.open(report.store).read("a.txt")
        {'y': array([10., 15., 40.], dtype=float32)}
    """

    def __init__(self, source: Source, transforms: Iterable[object]) -> None:
        if isinstance(transforms, (str, Transform)) or callable(transforms):
            raise TypeError(f"transforms is a list, got {transforms!r}: put it in a list")
        self.source = source
        self.transforms = tuple(transform_of(given) for given in transforms)
        #: The fields between the transforms, those of the source first.
        self._fields = [check_fields(source.fields)]
        for transform in self.transforms:
            self._fields.append(check_fields(transform.output_fields(self._fields[-1])))
        self._before = sum(transform.before for transform in self.transforms)
        self._after = sum(transform.after for transform in self.transforms)
        self._in_order = any(transform.in_order for transform in self.transforms)
        self._block_steps = max(1, int(BLOCK_BYTES / self._most_bytes()))

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields after the last transform."""
        return self._fields[-1]

    @property
    def threads(self) -> bool:
        """Whether threads serve the source and all transforms."""
        # As a job takes a source that does not say.
        return getattr(self.source, "threads", True) and all(transform.threads for transform in self.transforms)

    @property
    def settings(self) -> tuple[object, ...] | None:
        """What decides how data is read: that of the source and the transforms; None where one does not say it."""
        settings = getattr(self.source, "settings", None)
        if settings is None:
            return None
        try:
            return settings, code_of(type(self.source)), self.transforms_fingerprint
        except TypeError:
            return None

    @property
    def transforms_fingerprint(self) -> str:
        """A hash of the transforms, their settings and the code of the user's functions; the same in every process.

        Raises:
            TypeError: Something in them has none.
        """
        return fingerprint_of([transform.fingerprint for transform in self.transforms])

    def _most_bytes(self) -> float:
        """The most bytes that a timestep of the source becomes on its way."""
        ratio, most = 1.0, float(_step_bytes(self._fields[0]))
        for transform, old, new in zip(self.transforms, self._fields[:-1], self._fields[1:], strict=True):
            most = max(most, _step_bytes(old) * ratio * transform.working_steps)
            ratio *= transform.length_ratio
            most = max(most, _step_bytes(new) * ratio)
        return most

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Cut the source so that partitions have about `target_bytes` decoded bytes after the transforms.

        Raises:
            TypeError: A partition does not say rightly what goes on in it.
        """
        ratio = math.prod(transform.length_ratio for transform in self.transforms)
        share = _step_bytes(self._fields[0]) / (_step_bytes(self._fields[-1]) * ratio)
        found = list(self.source.partitions(max(1, round(target_bytes * share))))
        for partition in found:
            if partition.continues is not None and not isinstance(partition.continues, str):
                raise TypeError(f"a partition continues an id or None, got {partition.continues!r}: change the source")
        return self._whole_sequences(found) if self._in_order else self._halos(found)

    def _halos(self, partitions: Sequence[Partition]) -> list[Partition]:
        """One task a partition, each with those that have the timesteps after its own."""
        needed = _MARGIN * (self._before + self._after) * _step_bytes(self._fields[0])
        tasks = []
        for number, partition in enumerate(partitions):
            following: list[Partition] = []
            stop = number + 1
            while stop < len(partitions) and len(following) < _MOST_FOLLOWING:
                if sum(one.num_bytes for one in following) >= needed or not _same(partitions, number + 1, stop):
                    break
                following.append(partitions[stop])
                stop += 1
            content = TaskContent(
                own=(partition,), following=tuple(following), to_the_end=not _same(partitions, number + 1, stop)
            )
            tasks.append(Partition(num_bytes=partition.num_bytes, content=content, continues=partition.continues))
        return tasks

    def _whole_sequences(self, partitions: Sequence[Partition]) -> list[Partition]:
        """One task for each partition in which a sequence may begin, with those that only go on with its last one."""
        tasks = []
        number = 0
        while number < len(partitions):
            stop = number + 1
            while _same(partitions, number + 1, stop):
                stop += 1
            # In the last of these the sequence ends, and others may begin.
            last = max(number + 1, stop - 1)
            own = tuple(partitions[number:last])
            content = TaskContent(own=own, following=tuple(partitions[last:stop]))
            tasks.append(Partition(num_bytes=sum(one.num_bytes for one in own), content=content))
            number = last
        return tasks

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield what a partition holds, transformed.

        Raises:
            TransformError: A transform failed.
            SourceError: The pieces of the source do not fit its fields, or too few timesteps follow.
        """
        content: TaskContent = partition.content
        #: The sequence that goes on from before, until another one is met.
        goes_on = content.own[0].continues
        current: TransformedSequence | None = None
        for own in content.own:
            for item in self.source.read(own):
                if isinstance(item, Skipped):
                    yield item
                    continue
                if self._in_order and item.id == goes_on:
                    continue  # the task that it began in has it
                if current is None or item.id != current.id:
                    if current is not None:
                        yield from current.end()
                    current = self._begin(item.id, continued=item.id == goes_on)
                goes_on = None
                yield from current.push(*self._checked(item))
            if self._in_order:
                goes_on = None
        following = content.following
        if current is not None and (not following or current.id != following[0].continues):
            yield from current.end()
            current = None
        if following and (current is not None or goes_on is None or goes_on != following[0].continues):
            # Where nothing of the sequence was here, what comes out of its start is this task's none the less. Where
            # it only went on through here, the task that has its timesteps before reads on.
            yield from self._read_on(content, current)

    def _read_on(self, content: TaskContent, current: TransformedSequence | None) -> Iterator[Piece]:
        """Bring the last sequence to its end, or as far as this task has to."""
        id = content.following[0].continues
        assert id is not None
        if current is None:
            current = self._begin(id, expected=False)
        ahead = self._before + self._after
        needed: float = ahead
        if self._in_order:
            needed = math.inf
        else:
            current.limit(self._before)
        for following in content.following:
            items = self.source.read(following)
            for item in items:
                if isinstance(item, Skipped):
                    continue  # its own task reports it
                if item.id != id:
                    _close(items)
                    yield from current.end()
                    return
                arrays, attrs = self._checked(item)
                taken = int(min(needed, num_steps(arrays)))
                yield from current.push({name: values[:taken] for name, values in arrays.items()}, attrs)
                needed -= taken
                if not needed:
                    _close(items)
                    yield from current.leave()
                    return
        if not content.to_the_end:
            raise SourceError(
                f"the transforms of {id!r} need {ahead} timesteps of the next partitions, the next "
                f"{len(content.following)} have {ahead - needed}: make partitions larger (shard_bytes)"
            )
        yield from current.end()

    def check_ids(self, partitions: Sequence[Partition], ids: Sequence[Sequence[str]]) -> None:
        """Check that each sequence that goes on in another partition was known to, once all have been read.

        Args:
            partitions: Those of this source.
            ids: Of each of them, the ids of its pieces, in order.

        Raises:
            SourceError: A sequence went on without `Partition.continues`: its parts were taken for sequences.
        """
        last: str | None = None
        for partition, own in zip(partitions, ids, strict=True):
            if own and own[0] == last and (self._before or self._after or self._in_order):
                known = None if self._in_order else partition.content.own[0].continues
                if known != last:
                    raise SourceError(
                        f"transforms are right where a partition says what goes on in it, {last!r} went on in one that "
                        "does not: set Partition.continues in the source"
                    )
            last = own[-1] if own else last

    def _begin(self, id: str, *, continued: bool = False, expected: bool = True) -> TransformedSequence:
        stages = [
            Stage(transform, fields, transform.begin(id, continued=continued))
            for transform, fields in zip(self.transforms, self._fields[1:], strict=True)
        ]
        return TransformedSequence(id, stages, self.fields, self._block_steps, continued=continued, expected=expected)

    def _checked(self, piece: Piece) -> tuple[Arrays, Mapping[str, Any] | None]:
        try:
            arrays, _ = check_arrays(self._fields[0], piece.arrays)
        except (TypeError, ValueError) as error:
            raise SourceError(f"sequence {piece.id!r} does not fit: {error}") from error
        return arrays, piece.attrs


def _same(partitions: Sequence[Partition], first: int, number: int) -> bool:
    """Whether the sequence that goes on in partition `first` goes on in partition `number` too."""
    return (
        number < len(partitions)
        and partitions[number].continues is not None
        and (partitions[number].continues == partitions[first].continues)
    )


def _step_bytes(fields: Mapping[str, Field]) -> int:
    return sum(field.step_bytes for field in fields.values())


def _close(items: object) -> None:
    """Let a source close what it reads from."""
    close = getattr(items, "close", None)
    if close is not None:
        close()
