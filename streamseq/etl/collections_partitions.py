"""What Dask dataframes and bags have in common as sources: partitions, unknown before they are computed."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

from streamseq.etl.collections_blocks import BlockInput, BlockSpan, Collection, Key, Run, continued_ids
from streamseq.etl.source import Partition


class PartitionedCollection(Collection):
    """A collection each of whose partitions is a block, and written by one task as it is."""

    _runs: list[list[Run]] | None = None

    @abstractmethod
    def _keys(self) -> list[Key]:
        """Dask's names of the partitions."""

    @property
    def lengths_known(self) -> bool:
        """Whether a survey has been made."""
        return self._runs is not None

    def survey_inputs(self) -> list[BlockInput]:
        """All partitions."""
        return [BlockInput(block=key) for key in self._keys()]

    def surveyed(self, runs: Sequence[Sequence[Run]]) -> Self:
        """The same, with these runs of sequences in its partitions."""
        same = copy.copy(self)
        same._runs = [list(each) for each in runs]
        return same

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Those of the collection."""
        spans = [BlockSpan(start=number, stop=number + 1) for number in range(len(self._keys()))]
        if self._runs is None:
            return [Partition(num_bytes=0, content=span) for span in spans]
        step = sum(field.step_bytes for field in self.fields.values())
        sizes = [step * sum(steps for _, steps in runs) for runs in self._runs]
        return [
            Partition(num_bytes=size, content=span, continues=id)
            for span, size, id in zip(spans, sizes, continued_ids(self._runs), strict=True)
        ]

    def inputs(self, span: BlockSpan) -> list[BlockInput]:
        """The partitions of a span."""
        return [BlockInput(block=key, steps=span.steps) for key in self._keys()[span.start : span.stop]]

    def first_steps(self, span: BlockSpan) -> int:
        """The timesteps of the first sequence in a partition."""
        runs = [] if self._runs is None else self._runs[span.start]
        return runs[0][1] if runs else 0
