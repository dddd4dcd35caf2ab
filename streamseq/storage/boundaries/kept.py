"""Stored boundaries: where windows end because the data says so, kept beside the sequences of a version."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from streamseq.core.boundaries import Boundaries
from streamseq.core.errors import CorruptionError, StoreError
from streamseq.core.layout import Numbers
from streamseq.storage.shards.zstd_frame import zstd_content_bytes
from streamseq.storage.strict_json import is_text, parse_json

if TYPE_CHECKING:
    from streamseq.storage.interface import Store

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

#: What the names of attachments that hold boundaries begin with.
PREFIX = "boundaries."
#: Boundaries under one name at most: they are held in memory.
MAX_BOUNDARIES = 1 << 28

_FORMAT, _FORMAT_VERSION = "streamseq-boundaries", 1
_MAX_HEADER_BYTES = 1 << 20
_MAX_RULES, _MAX_RULE_TEXT = 64, 1_000
_LEVEL = 3


class Found(NamedTuple):
    """The boundaries of one sequence.

    Args:
        positions: int64 [M], ascending: a window begins with each of these timesteps.
        breaks: bool [M], whether the state begins anew there.
    """

    positions: Int64
    breaks: Bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredBoundaries:
    """Boundaries that were found in a version of a store, and are stored with it and with those that go on from it.

    Args:
        store: Whose sequences they are of.
        name: Their name.
        version: The version that they were found in.
        rules: What found them, as text.
        lengths: int64 [N], of each sequence that the version had how many timesteps it had: those are covered.
        boundaries: All of them; `sequence`, `first`, `position` and `breaks` are arrays.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/log.arrow", {"time": ss.Field("int64")}) as writer:
        ...         writer.write("a", time=np.array([0, 1, 5, 6]))
        ...     _ = ss.mark(folder + "/log.arrow", "gaps", ss.splits.Gap("time", longer_than=1))
        ...     found = ss.open(folder + "/log.arrow").boundaries("gaps")
        ...     found["a"].positions.tolist(), found["a"].breaks.tolist(), found.version, found.rules
        ([2], [True], 1, ("Gap(field='time', longer_than=1, reset=True)",))
    """

    store: Store
    name: str
    version: int
    rules: tuple[str, ...]
    lengths: Int64
    boundaries: Boundaries

    def __len__(self) -> int:
        return len(self.boundaries)

    def __getitem__(self, id_or_index: str | int) -> Found:
        """Those of one sequence, none where it has none.

        Raises:
            KeyError: There is no sequence with this id, or it is not covered.
            IndexError: There is no sequence with this index.
        """
        index = self.store._index(id_or_index)
        if index >= len(self.lengths):
            raise KeyError(self.not_covered(index, 0, self.store.length(index)))
        held = self.boundaries
        slot = int(np.searchsorted(held.sequence, index))
        if slot == len(held.sequence) or held.sequence[slot] != index:
            return Found(np.empty(0, np.int64), np.empty(0, np.bool_))
        part = slice(int(held.first[slot]), int(held.first[slot + 1]))
        return Found(held.position[part].astype(np.int64), held.breaks[part].copy())

    def __repr__(self) -> str:
        return (
            f"<StoredBoundaries {self.name!r}: {len(self):,}, {int(self.boundaries.breaks.sum()):,} of them breaks, of "
            f"{len(self.lengths):,} sequences of version {self.version}>"
        )

    @property
    def whole(self) -> bool:
        """Whether every timestep of the store is covered."""
        return len(self.lengths) == len(self.store) and int(self.lengths.sum()) == self.store.num_timesteps

    def not_covered(self, sequence: int, covered: int, wanted: int) -> str:
        """What to say of a sequence with timesteps that are not covered."""
        rules = ", ".join(self.rules)
        return (
            f"boundaries {self.name!r} of {self.store.uri} were found in version {self.version}, this is version "
            f"{self.store.version}: they cover {covered:,} of {wanted:,} timesteps of {self.store.id_of(sequence)!r}; "
            f"find them again with ss.mark(uri, {self.name!r}, ...), by {rules}, or stream what they cover"
        )


def format_boundaries(version: int, rules: Sequence[str], lengths: Int64, boundaries: Boundaries) -> bytes:
    """Write boundaries as the bytes of their attachment.

    Args:
        version: The version that they were found in.
        rules: What found them, as text.
        lengths: int64 [N], timesteps of each of its sequences.
        boundaries: All of them.

    Raises:
        StoreError: There are more than an attachment holds.
    """
    if len(boundaries) > MAX_BOUNDARIES:
        raise StoreError(
            f"at most {MAX_BOUNDARIES:,} boundaries are stored under one name, got {len(boundaries):,}: use coarser "
            "rules, or give the rules to ss.splits.Domain, which finds them each time"
        )
    counts = np.zeros(len(lengths), np.int64)
    counts[boundaries.sequence] = np.diff(boundaries.first)
    # From one to the next, and from the start of the sequence to its first one.
    steps = np.diff(boundaries.position.astype(np.int64), prepend=0)
    steps[boundaries.first[:-1]] = boundaries.position[boundaries.first[:-1]]
    blocks = {
        "lengths": _pack(lengths),
        "counts": _pack(counts),
        "steps": _pack(steps),
        "breaks": (1, _compress(np.packbits(boundaries.breaks, bitorder="little"))),
    }
    header = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "version": version,
        "rules": [rule[:_MAX_RULE_TEXT] for rule in rules[:_MAX_RULES]],
        "sequences": len(lengths),
        "boundaries": len(boundaries),
        "blocks": {name: {"width": width, "bytes": len(block)} for name, (width, block) in blocks.items()},
    }
    return b"".join([json.dumps(header).encode(), b"\n", *(block for _, block in blocks.values())])


def parse_boundaries(content: bytes, store: Store, name: str) -> StoredBoundaries:
    """Read the bytes of an attachment, believing nothing that was not checked.

    Args:
        content: The bytes.
        store: Whose sequences they say something of.
        name: The name of the boundaries.

    Raises:
        CorruptionError: They break a rule of the format, or do not go with the store.
    """
    try:
        return _parse(content, store, name)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CorruptionError(
            f"boundaries {name!r} of {store.uri} break the format: {reason}; they were not written by streamseq, or "
            f"for another store: find them again with ss.mark(uri, {name!r}, ...)"
        ) from None


def _parse(content: bytes, store: Store, name: str) -> StoredBoundaries:
    end = content.find(b"\n", 0, _MAX_HEADER_BYTES)
    _require(end >= 0, "there is no header")
    header = parse_json(content[:end])
    _require(isinstance(header, dict) and header.get("format") == _FORMAT, "the header is another one")
    _require(header["format_version"] == _FORMAT_VERSION, f"its format version is {header['format_version']!r}")
    version, sequences, number = (_count(header[each]) for each in ("version", "sequences", "boundaries"))
    _require(1 <= version <= store.version, f"they were found in version {version}")
    _require(sequences <= len(store), f"they are of {sequences} sequences, there are {len(store)}")
    _require(
        number <= min(MAX_BOUNDARIES, store.num_timesteps), f"{number} boundaries of {store.num_timesteps} timesteps"
    )
    rules = header["rules"]
    _require(isinstance(rules, list) and len(rules) <= _MAX_RULES and all(map(is_text, rules)), "rules are texts")
    blocks = _Blocks(header["blocks"], memoryview(content)[end + 1 :])
    lengths = blocks.numbers("lengths", sequences)
    _require(bool(np.all(lengths <= store.lengths[:sequences])), "a sequence is longer than that of the store")
    counts = blocks.numbers("counts", sequences)
    # Each of them is small enough for a sum that fits: boundaries lie at different timesteps inside their sequence.
    _require(bool(np.all(counts <= np.maximum(lengths - 1, 0))), "a sequence has more boundaries than it has room for")
    _require(int(counts.sum()) == number, "the sequences have another number of boundaries")
    steps = blocks.numbers("steps", number)
    bits = blocks.bytes("breaks", -(-number // 8))
    blocks.end()
    breaks = np.unpackbits(bits, count=number, bitorder="little").astype(np.bool_)
    held = np.flatnonzero(counts)
    position = _positions(steps, counts[held], lengths[held])
    return StoredBoundaries(
        store=store,
        name=name,
        version=version,
        rules=tuple(rules),
        lengths=lengths,
        boundaries=Boundaries(held, counts[held], position, breaks),
    )


def _positions(steps: Int64, counts: Int64, lengths: Int64) -> Int64:
    """Positions from the steps between them, each sequence's from 0 on."""
    if not len(steps):
        return steps
    _require(int(steps.min()) >= 1, "boundaries of a sequence do not ascend")
    sums = np.cumsum(steps)
    # A sum that is too large for an int64 has become smaller than the one before.
    _require(bool(np.all(sums[1:] > sums[:-1])), "boundaries lie outside their sequence")
    first = np.cumsum(counts) - counts
    before = sums[first] - steps[first]
    position: Int64 = sums - np.repeat(before, counts)
    _require(bool(np.all(position[first + counts - 1] < lengths)), "boundaries lie outside their sequence")
    return position


class _Blocks:
    """The compressed arrays of an attachment, one after the other."""

    def __init__(self, said: dict[str, Any], content: memoryview) -> None:
        self._said = said
        self._rest = content

    def bytes(self, name: str, num_bytes: int) -> NDArray[np.uint8]:
        """The next block, uint8 `[num_bytes]`."""
        size = _count(self._said[name]["bytes"])
        _require(size <= len(self._rest), f"block {name} ends early")
        block, self._rest = self._rest[:size], self._rest[size:]
        _require(zstd_content_bytes(block) == num_bytes, f"block {name} does not decode to {num_bytes} bytes")
        values = np.empty(num_bytes, np.uint8)
        if num_bytes:
            try:
                zstd.decompress(bytes(block), values)
            except (RuntimeError, ValueError):
                raise ValueError(f"block {name} does not decode") from None
        return values

    def numbers(self, name: str, count: int) -> Int64:
        """The next block, int64 `[count]` of at least 0."""
        width = _count(self._said[name]["width"])
        _require(1 <= width <= 8, f"numbers have {width} bytes")
        planes = self.bytes(name, width * count).reshape(width, count)
        values = np.zeros((count, 8), np.uint8)
        values[:, :width] = planes.T
        numbers: Int64 = values.view("<i8").reshape(count).astype(np.int64, copy=False)
        _require(int(numbers.min(initial=0)) >= 0, f"block {name} has numbers that are too large")
        return numbers

    def end(self) -> None:
        """Nothing may follow."""
        _require(not len(self._rest), "something follows them")


def _pack(numbers: Numbers) -> tuple[int, bytes]:
    """How many bytes of each number are kept, and these: all first bytes, then all second ones, and so on."""
    width = max(1, math.ceil(int(numbers.max(initial=0)).bit_length() / 8))
    planes = numbers.astype("<u8").view(np.uint8).reshape(len(numbers), 8).T[:width]
    return width, _compress(np.ascontiguousarray(planes))


def _compress(values: NDArray[np.uint8]) -> bytes:
    return bytes(zstd.compress(values.reshape(-1), _LEVEL))


def _count(value: object) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63, f"{value!r} is no count")
    assert isinstance(value, int)
    return value


def _require(rule: bool, otherwise: str) -> None:
    if not rule:
        raise ValueError(otherwise)
