"""TensorBoard: the curves of the reference trainer, and of loops of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError("TensorBoard needs tensorboard: pip install streamseq[tensorboard]") from error

from streamseq.core.settings import at_least
from streamseq.tbptt.update import Update
from streamseq.training.progress import Progress, Reporter
from streamseq.training.result import TrainingResult

__all__ = ["TensorBoardReporter", "log_updates"]


class TensorBoardReporter:
    """A reporter of `streamseq.training.train` that writes what TensorBoard shows. A context manager.

    By update: the loss in training and on held-out sequences, timesteps a second, and memory. A run that is resumed in
    the same folder goes on in the same curves, without what the stopped one made after its last checkpoint.

    Args:
        folder: For TensorBoard's files.
        also: Another reporter, which hears the same.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> from streamseq.training import TrainingSettings, train
        >>> store = ss.from_arrays({f"{i}": {"x": np.arange(200, dtype=np.uint8)} for i in range(4)})
        >>> settings = TrainingSettings(k1=16, k2=32, lanes=2, hidden=8, updates=3, threads=1)
        >>> with tempfile.TemporaryDirectory() as folder, TensorBoardReporter(folder + "/board") as board:
        ...     board.finish(train(store, folder + "/run", settings, reporter=board))
    """

    def __init__(self, folder: str | os.PathLike[str], also: Reporter | None = None) -> None:
        self._folder = os.fspath(folder)
        self._also = also
        self._writer: Any = None
        self._held_out_at = -1

    def _writer_from(self, update: int) -> Any:
        if self._writer is None:
            # What an earlier process wrote of this and later updates is not shown.
            self._writer = SummaryWriter(self._folder, purge_step=update)
        return self._writer

    def show(self, progress: Progress) -> None:
        """Write the figures of an update."""
        first = self._writer is None
        writer, update = self._writer_from(progress.update), progress.update
        writer.add_scalar("loss/train", progress.loss, update)
        writer.add_scalar("speed/timesteps_per_second", progress.timesteps_per_second, update)
        writer.add_scalar("memory/peak_rss_bytes", progress.peak_rss_bytes, update)
        if progress.held_out_loss is not None and progress.held_out_at != self._held_out_at:
            if not first or progress.held_out_at >= update - 1:
                writer.add_scalar("loss/held_out", progress.held_out_loss, progress.held_out_at)
            self._held_out_at = progress.held_out_at
        if self._also is not None:
            self._also.show(progress)

    def note(self, text: str) -> None:
        """Only for the other reporter."""
        if self._also is not None:
            self._also.note(text)

    def finish(self, result: TrainingResult) -> None:
        """Write what was evaluated last, which no update shows."""
        if result.held_out_loss is not None and self._writer is not None and result.updates != self._held_out_at:
            self._writer.add_scalar("loss/held_out", result.held_out_loss, result.updates)
            self._held_out_at = result.updates

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def log_updates(
    updates: Iterable[Update], writer: SummaryWriter, *, start: int = 0, every: int = 1
) -> Iterator[Update]:
    """Pass updates on, and write the mean loss over the timesteps since the last writing.

    Args:
        updates: Such as `tbptt.updates(stream)`.
        writer: Of TensorBoard.
        start: Updates that were made before; after a resume give the writer `purge_step=start + 1`, too.
        every: Updates from one writing to the next; the last ones are written too.

    Raises:
        ValueError: `every` is less than 1.

    Example:
        >>> import tempfile, numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((10, 3), np.float32)}})
        >>> tbptt = ss.TBPTT(torch.nn.GRU(3, 2, batch_first=True), lambda y, w: y.square(), k1=4, k2=8)
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     updates = log_updates(tbptt.updates(ss.StreamDataset(store, lanes=1, window=4)), writer)
        ...     [update.num_timesteps for update in updates]
        [4, 4, 2]
    """
    at_least("every", every, 1)
    number, total, count = start, 0.0, 0
    for update in updates:
        number += 1
        total += float(update.loss) * update.num_timesteps
        count += update.num_timesteps
        if update.k2 is not None:
            writer.add_scalar("k2", update.k2, number)
        if number % every == 0:
            writer.add_scalar("loss/train", total / count, number)
            total, count = 0.0, 0
        yield update
    if count:
        writer.add_scalar("loss/train", total / count, number)
