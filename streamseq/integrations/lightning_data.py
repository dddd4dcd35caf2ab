"""Streams for a Lightning trainer: which windows it gets, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from streamseq.core.plan import lanes_of_rank
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window
from streamseq.storage.interface import Store

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule as _Base
else:
    _Base = object

#: A store, the stream of one process, or what makes the stream of a rank from rank and world size.
Source = Store | StreamDataset | Callable[[int, int], StreamDataset]


class StreamData(_Base):
    """Streams of windows for training, validation, testing and prediction.

    The stream is in the trainer's epoch, has the lanes of the process's rank, and its position is in the trainer's
    checkpoint: a run that is resumed in the middle of an epoch goes on with the next window. The trainer asks for the
    loader in each epoch, as the number of windows may differ from one to the next.

    Args:
        train, val, test, predict: For each a store, a function `(rank, world_size) -> StreamDataset`, or a
            `StreamDataset` where one process trains; None: nothing.
        prefetch: See `StreamLoader`.
        options: Of the streams of stores, such as `lanes` and `window`; only training is shuffled.

    Raises:
        TypeError: There are options, and no store.
    """

    def __init__(
        self,
        *,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        prefetch: int = 4,
        **options: Any,
    ) -> None:
        super().__init__()
        self._sources = {"train": train, "val": val, "test": test, "predict": predict}
        if options and not any(isinstance(source, Store) for source in self._sources.values()):
            raise TypeError(
                f"{', '.join(options)} are options of streams of stores, and none is given: pass a store, or make the "
                "streams with them"
            )
        self._options = options
        self._prefetch = prefetch
        self._streams: dict[tuple[str, int, int], StreamDataset] = {}

    def setup(self, stage: str) -> None:
        """Tell the trainer where there is no validation, or it would run one on nothing."""
        if stage == "fit" and self._sources["val"] is None and self.trainer is not None:
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> Any:
        """The windows of the trainer's epoch."""
        trainer = self.trainer
        assert trainer is not None
        stream = self._stream("train")
        if stream is None:
            return []
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        stream.set_epoch(trainer.current_epoch)
        return LazyLoader(stream, self._prefetch)

    def val_dataloader(self) -> Any:
        """The windows for validation."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """The windows for testing."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The windows for prediction."""
        return self._loader("predict")

    def _loader(self, name: str) -> Any:
        stream = self._stream(name)
        return [] if stream is None else StreamLoader(stream, self._prefetch)

    def _stream(self, name: str) -> StreamDataset | None:
        source, trainer = self._sources[name], self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        if source is None:
            return None
        key = (name, rank, world_size)
        if key not in self._streams:
            self._streams[key] = self._make(name, source, rank, world_size)
        return self._streams[key]

    def _make(self, name: str, source: Source, rank: int, world_size: int) -> StreamDataset:
        if isinstance(source, Store):
            options = self._options if name == "train" else {**self._options, "shuffle": False}
            return StreamDataset(source, rank=rank, world_size=world_size, **options)
        stream = source if isinstance(source, StreamDataset) else source(rank, world_size)
        if world_size > 1 and len(stream):
            start, stop = lanes_of_rank(stream.lanes, rank, world_size)
            found = stream[0].token.lane.tolist()
            if found != list(range(start, stop)):
                raise ValueError(
                    f"rank {rank} of {world_size} has the lanes {start} to {stop - 1}, got a stream of lanes "
                    f"{found[0]} to {found[-1]} for {name}: pass a store, or a function (rank, world_size) that makes "
                    "the stream"
                )
        return stream


class LazyLoader(StreamLoader):
    """A loader whose iterations may be begun several times before the first window is taken, as trainers do.

    A position that was loaded holds for the one from which a window is taken.
    """

    def __iter__(self) -> Iterator[Window]:
        # A generator: nothing happens before the first window is taken.
        yield from super().__iter__()
