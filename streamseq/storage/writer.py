"""The writer of a `with` block: one shard writer, whose receipt is committed when the block is left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from streamseq.core.errors import StoreError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import Place
from streamseq.storage.shards.shard_writer import Receipt, ShardWriter, agreed_attrs, attrs_json
from streamseq.storage.statistics.kept import NAME
from streamseq.storage.versions.claim import Claim
from streamseq.storage.versions.new_version import program
from streamseq.storage.versions.receipts import abandon_receipts, commit_receipts


class Writer:
    """Writes sequences into the next version of a store; for one thread.

    The version is committed when the `with` block is left, and by an exception in the block nothing is.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("float32")}) as writer:
        ...         writer.write("plant-3", x=np.float32([0.5, 1.5]), attrs={"site": "north"})
        ...         writer.append("plant-4", x=np.float32([2.5]))
        ...         writer.append("plant-4", x=np.float32([3.5]))
        ...     ss.open(folder + "/plants.zarr").lengths
        array([2, 2])
    """

    def __init__(
        self, place: Place, layout: ShardLayout, base: DiskStore | None, job: str | None, statistics: bool = True
    ) -> None:
        self._place = place
        self._layout = layout
        self._base = base
        self._job = job
        # What is added to a version without statistics makes one without.
        self._statistics = statistics and (base is None or base.attachment(NAME) is not None)
        self._claim = Claim(place, program() if job is None else job)
        self._shards: ShardWriter | None = None
        self._begun: object = None
        self._used = False

    def write(self, id: str, /, attrs: Mapping[str, Any] | None = None, **arrays: Any) -> None:
        """Write a whole sequence. A call that refuses its arguments writes nothing.

        Args:
            id: The id of the sequence, a new one.
            attrs: Its attributes: a dict that JSON can hold.
            **arrays: One array `[n, *D]` per field, all of the same n, which may be 0.

        Raises:
            TypeError: The id or an array has the wrong type, or attributes are not JSON.
            ValueError: There is such a sequence already, a field is missing or unknown, a shape is wrong, lengths
                differ, or the block was left.
        """
        shards = self._writing()
        if isinstance(id, str) and (id in shards or self._known(id) is not None):
            raise ValueError(f"a sequence is written once, and there is {id!r} already: use append to make it longer")
        shards.append(id, arrays, attrs)

    def append(self, id: str, /, attrs: Mapping[str, Any] | None = None, **arrays: Any) -> None:
        """Write the next timesteps of a sequence, new or not. A call that refuses its arguments writes nothing.

        Args:
            id: The id of the sequence.
            attrs: Its attributes. They are set once: later calls leave them out or repeat them.
            **arrays: One array `[n, *D]` per field, all of the same n, which may be 0.

        Raises:
            TypeError: The id or an array has the wrong type, or attributes are not JSON.
            ValueError: A field is missing or unknown, a shape is wrong, lengths differ, attributes are not those given
                before, or the block was left.
        """
        shards = self._writing()
        if self._base is not None and attrs is not None and isinstance(id, str):
            known = self._base.find(id)
            if known is not None:
                agreed_attrs(id, self._base.attrs_json(known), attrs_json(id, attrs))
        shards.append(id, arrays, attrs)

    def __enter__(self) -> Self:
        if self._used:
            raise ValueError("a writer is used for one block: call ss.append for the next one")
        self._used = True
        self._begun = self._place.begin()
        shards = ShardWriter(self._place, self._layout, self._statistics)
        try:
            self._claim.hold()
            self._claim.note(shards.writer_id)
        except BaseException:
            self._end()
            raise
        self._shards = shards
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shards, self._shards = self._shards, None
        assert shards is not None
        receipt: Receipt | None = None
        committed = False
        try:
            if kind is None:
                receipt = shards.finish()
                commit_receipts(
                    self._place,
                    self._layout,
                    [receipt],
                    0 if self._base is None else self._base.version,
                    self._job,
                )
                committed = True
        finally:
            try:
                if not committed:
                    if receipt is None:
                        shards.abandon()
                    elif self._place.undecided(sys.exception()):
                        committed = True  # perhaps
                    else:
                        abandon_receipts(self._place, [receipt])
            finally:
                self._end(committed)

    def _end(self, committed: bool = False) -> None:
        """Give up the claim, and what was made for a store that does not come to be."""
        self._claim.release()
        if not committed and self._base is None:
            with contextlib.suppress(OSError, StoreError):
                self._place.undo(self._begun)

    def _writing(self) -> ShardWriter:
        if self._shards is None:
            what = "its block was left" if self._used else "it has no block yet"
            raise ValueError(
                f"a writer writes inside its `with` block, and {what}: use `with ss.append(...) as writer`"
            )
        self._claim.refresh()
        return self._shards

    def _known(self, id: str) -> int | None:
        return None if self._base is None else self._base.find(id)
