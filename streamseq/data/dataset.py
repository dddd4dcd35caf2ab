"""Streams: a store's sequences as contiguous windows with state tokens, an iterable PyTorch dataset."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from streamseq.core.balance import Balance
from streamseq.core.errors import PlanError, ResumeError
from streamseq.core.layout import Occupancy
from streamseq.core.plan import Plan, lanes_of_rank
from streamseq.core.settings import PlanSettings
from streamseq.core.shuffle import RUN
from streamseq.core.sizes import parse_bytes
from streamseq.core.splits import Naive, Split
from streamseq.core.tokens import Position, StateToken
from streamseq.core.uses import Uses
from streamseq.data.blocks import BlockReader
from streamseq.data.buffers import Buffers
from streamseq.data.cursor import Cursor
from streamseq.data.limits import Limits, limits_within, needs_of, tensors_of, usual_limits
from streamseq.data.normalization import Scale, digest, find_scales
from streamseq.data.requests import Emitted, View
from streamseq.data.streamed import Stores, Wanted, find_emitted, idle_lanes, one_store, share_lanes
from streamseq.data.window import Window
from streamseq.storage.interface import Store
from streamseq.storage.joined import JoinedStore


class StreamDataset(IterableDataset[Window]):
    """Windows of `window` timesteps of `lanes` sequences side by side, in an order that the plan alone decides.

    Lane i of window t+1 goes on exactly where lane i of window t stopped, or resets; `window.token` says which. The
    windows are the same, in the same order, for any number of DataLoader workers (`batch_size=None`).

    Args:
        store: From `ss.open` or `ss.from_arrays`; or several, in a list or a dict by name, which become one catalogue
            (`ss.join`): tokens count sequences through it, and their ids are `NAME/ID`, `0/ID`, `1/ID`, ... in a list.
        lanes: Number of lanes B, over all ranks; or how many each of several stores has, in a list or a dict.
        window: Timesteps K of a window; None with `ss.splits.AsIs()`.
        sequences: A subset: ids (or indices), or `(id, start, stop)` spans; None for all. Nothing outside a span is
            shown, not as a lookahead either.
        fields: Names of the fields to emit; None for all.
        lookahead: Name -> (field, offset): `{"target": ("x", 1)}` emits target[t] = x[t+1]. Timesteps without one
            are masked.
        batch_first: Tensors are [B, K, *D]; False: [K, B, *D].
        split: `ss.splits.Naive()`, `ss.splits.AsIs()`, or `ss.splits.Domain(...)`: windows end where the data says, and
            the fields that say so are looked through once, here.
        shuffle: Take the sequences in a random order, another one in each epoch.
        seed: Of the shuffling.
        epoch: To begin with.
        tail: What becomes of what is left of a sequence after its last whole window. "pad": it is a window with
            padding; "drop": it is left out; "pack": the lane's next sequence follows in the same window, so that only a
            lane's last window has padding, and `token.segments` and `token.resets` say where sequences start.
        layout: "sequences": whole sequences fill the lanes; "even": the data is cut into B equal runs.
        longest: A longer sequence is cut into equal pieces of at most so many timesteps, each with a reset, which go to
            lanes like sequences, so that fewer lanes are idle at the end; None: no sequence is cut.
        weights: Each of several stores has lanes of its own, shared out by weight: by largest remainder, each at least
            one. A list, or a dict by name. None: sequences of all stores fill all lanes.
        until: What happens where a store that has lanes of its own ends before another one. "all": its lanes are idle.
            "first": the epoch ends there for all, whatever the windows; `left_out` counts the rest. "repeat": it is
            gone through again, in another order if shuffled, until the last one ends; `repeated` counts that.
        balance: The name of an attribute, or `ss.Balance(...)`: sequences are drawn in random order so that classes
            come equally often, or in given ratios; of each store, where they have lanes of their own. `uses` counts.
        rank, world_size: This process and how many there are; ranks own contiguous runs of lanes.
        normalize: Values become (x - offset) / scale in float32 (of float64 in float64), channel by channel, and so do
            lookaheads of them; NaN stays NaN, padding 0. True: the floating fields, by mean and standard deviation, as
            `store.statistics` has them. A list: these fields so, integers too. A mapping from names to "standard" (the
            same), "range" (by least and greatest value, to 0 and 1), `(offset, scale)` or `Statistics` (which leaves
            integers alone). A scale of 0 counts as 1. The statistics of a store are of all of it: where some of it is
            for validation, pass those of the rest, `ss.statistics(store, sequences=train)`. Several stores have one
            offset and scale, of all their timesteps, whatever the weights.
        memory: The most that an iteration's windows and decoded chunks may take, in bytes or as text such as "500MB";
            windows that you keep yourself and the plan (8 to 12 bytes a sequence) come on top. None: blocks of about
            8 MB and two chunks for each lane, which is fastest.

    Raises:
        StoreError: Statistics are needed to normalise, and the store has none.
        PlanError: Nothing to emit, fewer lanes than ranks or than stores with lanes of their own, or not enough
            `memory`; when iterating with a loader that reads more blocks ahead than fit.
        KeyError: A field, or the id of a sequence, is not in the store.
        TypeError, ValueError: An argument is of a wrong type or out of range, a boundary rule does not go with its
            field, several stores have different fields, or a sequence has no class.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.arange(5)}, "b": {"x": np.arange(3)}})
        >>> stream = ss.StreamDataset(store, lanes=2, window=3)
        >>> [window["x"].tolist() for window in stream]
        [[[0, 1, 2], [0, 1, 2]], [[3, 4, 0], [0, 0, 0]]]
        >>> stream[1].token.sequence.tolist(), stream[1].lengths.tolist()
        ([0, -1], [2, 0])
        >>> packed = ss.StreamDataset(store, lanes=1, window=4, tail="pack")
        >>> [window["x"].tolist() for window in packed]
        [[[0, 1, 2, 3]], [[4, 0, 1, 2]]]
        >>> packed[1].token.segments.tolist()  # lane, offset, sequence, start, stop, reset
        [(0, 0, 0, 4, 5, False), (0, 1, 1, 0, 3, True)]
        >>> ending = ss.StreamDataset(store, lanes=1, window=4, split=ss.splits.Domain({"a": [2]}))
        >>> [(window["x"].tolist(), window.lengths.item(), window.token.reset.item()) for window in ending]
        [([[0, 1, 0, 0]], 2, True), ([[2, 3, 4, 0]], 3, False), ([[0, 1, 2, 0]], 3, True)]
        >>> other = ss.from_arrays({"a": {"x": np.arange(10, 14)}})
        >>> mixed = ss.StreamDataset({"one": store, "two": other}, lanes=2, window=4, weights=[0.5, 0.5])
        >>> [window["x"].tolist() for window in mixed]
        [[[0, 1, 2, 3], [10, 11, 12, 13]], [[4, 0, 0, 0], [0, 0, 0, 0]], [[0, 1, 2, 0], [0, 0, 0, 0]]]
        >>> mixed.store_lanes, mixed.store.ids[mixed[0].token.sequence[1]].as_py()
        ({'one': range(0, 1), 'two': range(1, 2)}, 'two/a')
    """

    def __init__(
        self,
        store: Stores,
        lanes: int | Sequence[int] | Mapping[str, int],
        window: int | None = None,
        *,
        sequences: Iterable[Any] | None = None,
        fields: Iterable[str] | None = None,
        lookahead: Mapping[str, tuple[str, int]] | None = None,
        batch_first: bool = True,
        split: Split | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        tail: str = "pad",
        layout: str = "sequences",
        longest: int | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        until: str = "all",
        balance: str | Balance | None = None,
        rank: int = 0,
        world_size: int = 1,
        normalize: object = None,
        memory: int | str | None = None,
    ) -> None:
        store = one_store(store)
        emitted = find_emitted(store, fields, lookahead or {})
        lanes, shares = share_lanes(store, lanes, weights)
        self.store = store
        self._settings = PlanSettings(
            lanes=lanes,
            window=window,
            split=Naive() if split is None else split,
            layout=layout,
            tail=tail,
            shuffle=bool(shuffle),
            seed=seed,
            longest=longest,
            run=_run(store, emitted),
        )
        lane_start, lane_stop = lanes_of_rank(lanes, rank, world_size)
        read = list(dict.fromkeys(each.field for each in emitted.values()))
        self._view = View(
            emitted=emitted,
            lane_start=lane_start,
            lane_stop=lane_stop,
            batch_first=bool(batch_first),
            scales=find_scales(store, read, normalize),
        )
        # Chosen anew from each version: what can be gone through but once is kept as a list.
        self._wanted = Wanted(
            sequences=sequences if sequences is None or hasattr(sequences, "to_pylist") else _listed(sequences),
            shares=shares,
            until=until,
            balance=Balance(balance) if isinstance(balance, str) else balance,
        )
        self._streamed = self._wanted.found_in(store, self._settings)
        self._memory = None if memory is None else parse_bytes(memory)
        self._cursor = Cursor()
        self._cursor.set_epoch(_epoch(epoch))
        self._cursor.version = store.version
        self._plan = self._make_plan()
        #: The window at which the stream goes on: what was handed out before it counts as consumed.
        self.position = 0
        self._buffers, self._mask_buffers = Buffers(1), Buffers(1)
        self._reader: BlockReader | None = None
        self._reader_owner: object = None
        # Says at once what cannot work, and what is not likely to be meant.
        self._limits(blocks=2)
        if layout == "sequences" and window is not None:
            for idle in idle_lanes(self._streamed, self._plan):
                warnings.warn(idle, stacklevel=2)

    def _make_plan(self) -> Plan:
        return self._streamed.plan(self._settings, contents=self._contents(), epoch=self._cursor.epoch)

    def _contents(self) -> str:
        """What says which values windows hold."""
        scales, contents = self._view.scales, self.store.fingerprint
        return f"{contents} normalized by {digest(scales)}" if scales else contents

    @property
    def plan(self) -> Plan:
        """The plan of the current epoch."""
        # The epoch and the version are shared with other processes, which may have moved them.
        if self.store.version != self._cursor.version:
            self._move_to(self.store.at_version(self._cursor.version))
        if self._plan.epoch != self._cursor.epoch:
            self._settings = replace(self._settings, switches=())
            self._plan = self._make_plan()
        return self._plan

    @property
    def lanes(self) -> int:
        """Number of lanes, over all ranks."""
        return int(self._settings.lanes)

    @property
    def window(self) -> int | None:
        """Timesteps of a window; None with the as-is split."""
        return self._settings.window

    @property
    def fields(self) -> list[str]:
        """The fields of the store that are read, each once."""
        return list(dict.fromkeys(each.field for each in self._view.emitted.values()))

    @property
    def emitted(self) -> Mapping[str, Emitted]:
        """What windows hold: by name the field of the store, and the offset of a lookahead."""
        return self._view.emitted

    @property
    def batch_first(self) -> bool:
        """Whether lanes come before timesteps."""
        return self._view.batch_first

    @property
    def normalization(self) -> Mapping[str, Scale]:
        """The fields that are normalised, with the offset and scale of each, float64 [*D].

        They are those that the stream began with, also on a later version. As `normalize=` of another stream, of
        validation data or of a run that goes on, they give the same values.
        """
        return dict(self._view.scales)

    def denormalize(self, name: str, values: Any) -> Any:
        """Values in the units of the store, such as predictions of a normalised target.

        Args:
            name: The name of a field or lookahead.
            values: A tensor or array [..., *D]; of a tensor dtype, device and gradients stay.

        Raises:
            KeyError: Nothing of this name is emitted.

        Example:
            >>> import numpy as np, streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": np.float32([1, 3, 5])}})
            >>> stream = ss.StreamDataset(store, lanes=1, window=3, normalize={"x": (1, 2)})
            >>> stream[0]["x"].tolist(), stream.denormalize("x", stream[0]["x"]).tolist()
            ([[0.0, 1.0, 2.0]], [[1.0, 3.0, 5.0]])
        """
        if name not in self._view.emitted:
            raise KeyError(f"the stream emits {', '.join(self._view.emitted)}, not {name!r}")
        scale = self._view.scales.get(self._view.emitted[name].field)
        if scale is None:
            return values
        if isinstance(values, Tensor):
            offset, by = (torch.as_tensor(each, dtype=values.dtype, device=values.device) for each in scale)
            return values * by + offset
        return np.asarray(values) * scale.scale + scale.offset

    @property
    def epoch(self) -> int:
        """The epoch, which only `set_epoch` and `load_state_dict` move."""
        return self._cursor.epoch

    @property
    def left_out(self) -> int:
        """Chosen timesteps that the epoch does not emit: by tail="drop", until="first" or balance."""
        return self.plan.left_out

    @property
    def repeated(self) -> int:
        """Emitted timesteps that the epoch has emitted before: by until="repeat" or balance."""
        return self.plan.repeated

    @property
    def uses(self) -> Uses:
        """How often the epoch emits each chosen sequence: `uses.sequence`, `uses.times`, `uses.timesteps`."""
        return self.plan.uses

    @property
    def store_lanes(self) -> Mapping[str, range]:
        """The lanes of each store, over all ranks, where stores have lanes of their own; empty otherwise."""
        mix = self._streamed.mix
        if mix is None or not isinstance(self.store, JoinedStore):
            return {}
        ends = np.cumsum(mix.lanes).tolist()
        return {
            name: range(end - count, end) for name, end, count in zip(self.store.stores, ends, mix.lanes, strict=True)
        }

    @property
    def occupancy(self) -> Occupancy:
        """How much of the epoch's lanes is data: idle lane-windows and padding, counted apart, over all ranks.

        `occupancy.busy` is the part of the lane-windows that are not idle, `occupancy.filled` the part of their
        timesteps that are not padding.
        """
        return self.plan.occupancy

    @property
    def num_timesteps(self) -> int:
        """Timesteps that the epoch emits, over all lanes and ranks, padding not counted."""
        return self.plan.num_timesteps

    def __len__(self) -> int:
        return self.plan.num_windows

    def __getitem__(self, step: int) -> Window:
        """Window `step` of the epoch; a negative one counts from the end. Not for several threads at once."""
        count = len(self)
        if not -count <= step < count:
            raise IndexError(f"the epoch has windows 0 to {count - 1}, got {step}")
        reader = self._own_reader()
        return next(reader.read(reader.request(step % count)).windows())

    def _own_reader(self) -> BlockReader:
        owner = (os.getpid(), self.plan)
        if self._reader is None or self._reader_owner != owner:
            self._reader, self._reader_owner = self.open_reader(), owner
        return self._reader

    def open_reader(self, ahead: int = 0) -> BlockReader:
        """A reader of the current epoch's windows.

        Args:
            ahead: Blocks that are read ahead. With some, a thread of the reader's own decodes chunks before they are
                needed.
        """
        # One more is filled, and one is looked at.
        blocks = ahead + 2
        tensors = sum(tensors_of(self.store, self._view, each.field) for each in self._view.emitted.values())
        if self._buffers.limit != blocks * tensors:
            self._buffers, self._mask_buffers = Buffers(blocks * tensors, all_at_once=True), Buffers(blocks)
        buffers = self._buffers, self._mask_buffers
        plan = self.plan  # which decides what the store is
        return BlockReader(self.store, plan, self._view, self._limits(blocks), *buffers, ahead > 0)

    def _limits(self, blocks: int) -> Limits:
        plan = self.plan
        length = plan.longest if self.window is None else self.window
        needs = needs_of(
            self.store,
            self._view,
            length,
            single=self.window is None,
            shuffle=self._settings.shuffle or self._wanted.balance is not None,
            blocks=blocks,
        )
        return usual_limits(needs) if self._memory is None else limits_within(needs, self._memory)

    def __iter__(self) -> Iterator[Window]:
        worker = get_worker_info()
        if worker is None:
            return self._iterate(range(self.take_start(), len(self)))
        # A DataLoader takes one window from each worker in turn.
        self.position = self._cursor.take_start(worker.seed - worker.id)
        return self._iterate(range(self.position + worker.id, len(self), worker.num_workers))

    def _iterate(self, steps: range) -> Iterator[Window]:
        reader = self.open_reader()
        try:
            for request in reader.requests(steps):
                for window in reader.read(request).windows():
                    self.position += steps.step
                    yield window
        finally:
            reader.close()

    def take_start(self) -> int:
        """The window at which an iteration that begins now starts: 0, or once what `load_state_dict` said."""
        self.position = self._cursor.take_start(None)
        return self.position

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch. The one the stream is in already: nothing changes, a loaded position stays.

        Raises:
            TypeError, ValueError: The epoch is not a whole number of at least 0.
        """
        if _epoch(epoch) != self.epoch:
            self._cursor.set_epoch(epoch)
            self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last window that was handed out, as plain strings and integers."""
        # A worker counts the windows of all workers, and at the end some that there are not.
        return self._position(min(self.position, len(self))).state_dict()

    def _position(self, step: int) -> Position:
        return Position(
            fingerprint=self.plan.fingerprint,
            version=self.store.version,
            epoch=self.epoch,
            step=step,
            window=self.window,
            switches=self.plan.settings.switches,
        )

    def set_window(self, window: int) -> None:
        """Begin the epoch anew with windows of another length; a loaded position is forgotten.

        Raises:
            TypeError, ValueError: The length is no whole number of at least 1, or the split is as-is.
        """
        settings = replace(self._settings, window=window, switches=())
        self._settings, before = settings, self._settings
        try:
            self._plan = self._make_plan()
        except BaseException:
            self._settings = before
            raise
        self._cursor.start_at(0)
        self.position = 0

    def rewindow(self, window: int, *, after: StateToken) -> None:
        """Go on after a window with windows of another length, in what is left of the epoch, where each lane stopped.

        Windows count from 0 again. State that is carried by hand (`Carry`) goes on as if nothing had happened.
        Positions saved from then on know of the change; the next epoch has windows of the new length from its start.
        All ranks change after the same window. DataLoader workers that persist do not see it: start them anew.

        Args:
            window: Timesteps of the windows to come.
            after: The token of the last window that counts as consumed.

        Raises:
            ResumeError: The token is of another plan, epoch or window length than the stream's.
            ValueError: tail="drop" or the as-is split, or `window` is less than 1.

        Example:
            >>> import numpy as np, streamseq as ss
            >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.arange(9)}}), lanes=1, window=2)
            >>> stream.rewindow(4, after=stream[0].token)
            >>> [window["x"].tolist() for window in stream]
            [[[2, 3, 4, 5]], [[6, 7, 8, 0]]]
        """
        rest = self.plan.rewindowed(window, step=self.plan.step_after(after))
        self._settings, self._plan = rest.settings, rest
        self._cursor.start_at(0)
        self.position = 0

    def refresh(self, version: int | None = None) -> bool:
        """Move to the newest version of the store, between epochs.

        What `sequences` named is chosen from it anew: all sequences, or those with these ids, each as long as it is
        now, and spans as they are. The epoch stays, and its windows count from 0. With new contents the plan has
        another fingerprint. Positions that were saved before are refused: to go on from one, open the version that it
        names. State that is carried goes on with the next window, which resets every lane.

        DataLoader workers that persist see it at their next iteration, one that runs ends on the version it began
        with. Where there are several ranks all must move to the same version: let one find it, and pass it to the
        others.

        Args:
            version: The version to move to; None: the newest one now.

        Returns:
            Whether the stream is on another version than before: `stream.store.version`. A store in memory, one that
            was adopted, and several stores in one stream have no other.

        Raises:
            ResumeError: The stream is within an epoch, or a position was loaded from which it has not gone on yet. A
                new epoch (`set_epoch`) forgets both. (What workers of a plain DataLoader have consumed is not known.)
            StoreError: There is no such version.
            KeyError: A chosen sequence is not in the version, whose writer left it out; the stream stays as it is.
            PlanError, ValueError: The version has nothing to emit, or is older.

        Example:
            >>> import tempfile, numpy as np, streamseq as ss
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with ss.create(folder + "/log.arrow", {"x": ss.Field("int64")}) as writer:
            ...         writer.write("a", x=np.arange(3))
            ...     stream = ss.StreamDataset(ss.open(folder + "/log.arrow"), lanes=1, window=3)
            ...     first = [window["x"].tolist() for window in stream]
            ...     with ss.append(folder + "/log.arrow") as writer:
            ...         writer.append("a", x=np.arange(3, 5))
            ...     stream.refresh(), stream.refresh(), first, [window["x"].tolist() for window in stream]
            (True, False, [[[0, 1, 2]]], [[[0, 1, 2]], [[3, 4, 0]]])
        """
        plan, pending = self.plan, self._cursor.pending
        if pending or 0 < self.position < plan.num_windows or (plan.settings.switches and not self.position):
            raise ResumeError(
                f"a stream moves to another version of its store between epochs, this one goes on at window "
                f"{pending or self.position} of {plan.num_windows} of epoch {self.epoch}: finish the epoch, or call "
                "set_epoch() first"
            )
        before = self.store, self._streamed, self._settings, self._plan
        store = self.store.at_version(version)
        if version is not None and version < self.store.version:
            raise ValueError(f"a stream moves to newer versions, got {version} on version {self.store.version}")
        if store.version <= self.store.version:
            return False
        self._cursor.version = store.version
        try:
            self._move_to(store)
            self._limits(blocks=2)
        except BaseException:
            self.store, self._streamed, self._settings, self._plan = before
            self._cursor.version = self.store.version
            raise
        self.position = 0
        return True

    def _move_to(self, store: Store) -> None:
        """Plan the epoch over another version of the store."""
        streamed = self._wanted.found_in(store, self._settings)
        self.store, self._streamed = store, streamed
        self._settings = replace(self._settings, run=_run(store, self._view.emitted), switches=())
        self._plan = self._make_plan()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position: the next iteration, and only that one, starts there.

        Args:
            state: What `state_dict` of this stream, of a loader over it or of a window's token returned.

        Raises:
            ResumeError: The position is of another store version, plan or window length.
        """
        saved = Position.from_state_dict(state)
        here = self._position(0)
        if saved.version != here.version:
            raise ResumeError(
                f"the position was saved on version {saved.version} of the store, this is version {here.version}: "
                f"open it with ss.open(uri, version={saved.version})"
            )
        if saved.fingerprint != here.fingerprint:
            raise ResumeError(
                f"the position was saved under plan {saved.fingerprint[:12]}, this stream has plan "
                f"{here.fingerprint[:12]}: the stores' contents, the sequences chosen, lanes (of each store), until, "
                "balance, layout, split, boundaries, tail, longest, shuffle, seed and the numbers of normalize "
                "(stream.normalization) must be the same"
            )
        if saved.window != here.window:
            raise ResumeError(
                f"the position counts windows of {saved.window} timesteps, this stream has window={here.window}: "
                f"pass window={saved.window}"
            )
        epoch, settings = self.epoch, self._settings
        self._cursor.set_epoch(saved.epoch)
        self._settings = replace(settings, switches=saved.switches)
        try:
            self._plan = self._make_plan()
            if saved.step > len(self):
                raise PlanError(f"it is after window {saved.step}, and the epoch has {len(self)} windows")
        except (PlanError, ValueError) as error:
            self._cursor.set_epoch(epoch)
            self._settings = settings
            self._plan = self._make_plan()
            raise ResumeError(f"the position is of no window of its epoch: {error}") from None
        self._cursor.start_at(saved.step, here_only=get_worker_info() is not None)
        self.position = saved.step

    def __getstate__(self) -> dict[str, Any]:
        # Open files and decoded chunks stay in their process.
        return {**self.__dict__, "_reader": None, "_reader_owner": None}

    def __repr__(self) -> str:
        return (
            f"StreamDataset({len(self):,} windows of {self.lanes} lanes x {self.window or 'whole sequences'}, "
            f"{self.num_timesteps:,} timesteps, epoch {self.epoch}, fields {', '.join(self._view.emitted)})"
        )


def _epoch(epoch: object) -> int:
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise TypeError(f"an epoch is an integer, got {epoch!r}")
    if epoch < 0:
        raise ValueError(f"an epoch is at least 0, got {epoch}")
    return epoch


def _run(store: Store, emitted: Mapping[str, Emitted]) -> int:
    """Timesteps that shuffling keeps together."""
    return RUN * max(store.chunk_timesteps[each.field] for each in emitted.values())


def _listed(sequences: Iterable[Any]) -> Iterable[Any]:
    return sequences if isinstance(sequences, str) else list(sequences)
