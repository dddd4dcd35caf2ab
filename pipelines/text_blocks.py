"""Blocks of lines for tokenizers, cut by what is in the file alone: tokens are the same for any partitions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np

from .text_lines import LongLine, Run, paragraph_start, starts_of

# Text in which no line ends is cut into blocks of this size, too; partitions are cut at multiples of it.
BLOCK_BYTES = 256 << 10

Block: TypeAlias = list[Run | LongLine]


def blocks_of(
    lines: Iterable[Run | LongLine], start: int, stop: int | None, size: int | None = None
) -> Iterator[Block]:
    """Yield the blocks of part of a file.

    The file is divided into cells of `size` bytes, and a line belongs to the cell in which it starts. A block goes from
    a good place in one cell, or its first line, to that in the next one.

    Args:
        lines: The lines that start in `[start, stop + size)`.
        start: Where the part begins: a multiple of `size`.
        stop: Where it ends: the same; None: at the end of the file.
        size: Bytes of a cell; None: `BLOCK_BYTES`.
    """
    size = BLOCK_BYTES if size is None else size
    first, after_last = start // size, None if stop is None else stop // size
    block: Block = []
    last: int | None = None
    for number, cell in _cells(lines, size):
        before, after = _cut(cell) if number else ([], cell)
        if number > first:
            if block and last != number - 1:
                yield block
                block = []
            for item in before:
                _append(block, item)
        if number == after_last:
            break
        if block:
            yield block
        block, last = after, number
    if block:
        yield block


def _cut(cell: Block) -> tuple[Block, Block]:
    first = cell[0]
    if isinstance(first, LongLine):
        return [], cell
    at = paragraph_start(first.data)
    if not at:
        return [], cell
    head, tail = _split(first, at)
    return [head], [tail, *cell[1:]]


def _cells(lines: Iterable[Run | LongLine], size: int) -> Iterator[tuple[int, Block]]:
    """The lines by the cell in which they start, those of one cell that follow each other as one run."""
    number = 0
    cell: Block = []
    for item in lines:
        for part in _by_cell(item, size):
            if cell and part.offset // size != number:
                yield number, cell
                cell = []
            number = part.offset // size
            _append(cell, part)
    if cell:
        yield number, cell


def _append(block: Block, item: Run | LongLine) -> None:
    last = block[-1] if block else None
    if isinstance(last, Run) and isinstance(item, Run):
        block[-1] = Run(offset=last.offset, line=last.line, data=np.concatenate([last.data, item.data]))
    else:
        block.append(item)


def _by_cell(item: Run | LongLine, size: int) -> Iterator[Run | LongLine]:
    if isinstance(item, LongLine):
        yield item
        return
    starts = starts_of(item.data)[:-1]
    cells = (item.offset + starts) // size
    rest = item
    at = 0
    for border in starts[1:][cells[1:] != cells[:-1]]:
        head, rest = _split(rest, int(border) - at)
        at = int(border)
        yield head
    yield rest


def _split(run: Run, at: int) -> tuple[Run, Run]:
    head, tail = run.data[:at], run.data[at:]
    line = None if run.line is None else run.line + int(np.count_nonzero(head == 10))
    return Run(offset=run.offset, line=run.line, data=head), Run(offset=run.offset + at, line=line, data=tail)
