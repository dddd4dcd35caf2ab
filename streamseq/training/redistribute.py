"""Another number of ranks: the carried states of all old ranks, taken apart by lane and dealt to the new ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamseq.core.errors import ResumeError
from streamseq.core.plan import lanes_of_rank
from streamseq.data import state as states
from streamseq.training.checkpoint import TakesState, load_checkpoint, read_checkpoint

_CARRY = frozenset(["token", "state"])
_ENGINE = frozenset(["k1", "k2", "losses", "truncation", "token", "began", "history"])
_PER_LANE = ("sequence", "start", "stop", "reset", "final", "lane")
_POSITION = frozenset(["fingerprint", "version", "epoch", "step", "window"])


def redistribute(
    saved: Iterable[Mapping[str, Any]], *, rank: int, world_size: int, lanes: int | None = None, lane_axis: Any = None
) -> dict[str, Any]:
    """The state of one of `world_size` ranks, from those of all the ranks that there were; lanes keep their states.

    Args:
        saved: What `state_dict()` of each old rank's `TBPTT`, or of each one's `Carry`, returned at the same window,
            in any order.
        rank, world_size: The new rank, and how many there are now.
        lanes: Lanes of the stream over all ranks, which must all be there; None: those that are there are all.
        lane_axis: See `streamseq.Carry`; needed only for states whose lane axis their sizes do not tell.

    Returns:
        What `load_state_dict` of the new rank's `TBPTT` or `Carry` takes. Its stream, with the same `rank` and
        `world_size`, takes the position of any old rank.

    Raises:
        ResumeError: A lane is missing or there twice, or the states are of different moments, plans, k1 or k2, or of
            different structures.
        PlanError: There are fewer lanes than ranks.
        ValueError: There is no state, or `rank` is not one of `world_size`.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> store = ss.from_arrays({f"{i}": {"x": np.full(4, i)} for i in range(3)})
        >>> saved = []
        >>> for rank in range(3):
        ...     window = ss.StreamDataset(store, lanes=3, window=2, rank=rank, world_size=3)[0]
        ...     carry = ss.Carry()
        ...     carry.leave(window.token, window["x"].sum(1))
        ...     saved.append(carry.state_dict())
        >>> carry.load_state_dict(redistribute(saved, rank=0, world_size=2))
        >>> carry.enter(ss.StreamDataset(store, lanes=3, window=2, rank=0, world_size=2)[1].token)
        tensor([0, 2])
    """
    parts = list(saved)
    if not parts:
        raise ValueError("redistribute takes the states of all ranks that there were, got none")
    names = {frozenset(part) if isinstance(part, Mapping) else frozenset([type(part).__name__]) for part in parts}
    if names not in ({_CARRY}, {_ENGINE}):
        found = " and ".join(sorted(", ".join(sorted(map(str, each))) for each in names))
        raise ResumeError(
            f"states of ranks are those of one kind, got {found}: pass what state_dict() of each rank's TBPTT, or of "
            "each rank's Carry, returned"
        )
    tokens = [part["token"] for part in parts]
    for name in ("k1", "k2", "losses", "truncation") if names == {_ENGINE} else ():
        _common(name, [part[name] for part in parts])
    _common("started", [token is not None for token in tokens])
    if tokens[0] is None:
        return dict(parts[0])
    for name in [name for name in tokens[0] if name not in (*_PER_LANE, "segments")]:
        _common(name, [token.get(name) for token in tokens])
    order = _order(torch.cat([token["lane"].cpu() for token in tokens]), lanes)
    start, stop = lanes_of_rank(len(order), rank, world_size)
    deal = _Deal(chosen=order[start:stop], lanes=[len(token["lane"]) for token in tokens], lane_axis=lane_axis)
    new: dict[str, Any] = {
        **parts[0],
        "token": {
            **tokens[0],
            **{name: deal.tensors([token[name] for token in tokens]) for name in _PER_LANE},
            "segments": deal.segments([token["segments"] for token in tokens]),
        },
    }
    if names == {_CARRY}:
        return new | {"state": deal.states([part["state"] for part in parts])}
    history = {name: _history(name, [part["history"][name] for part in parts], deal) for name in parts[0]["history"]}
    history["kept"] = _kept(parts, deal)
    return new | {"began": deal.tensors([part["began"] for part in parts]), "history": history}


def _history(name: str, values: Sequence[Any], deal: _Deal) -> Any:
    """What the engines keep beside states: by lane, or the same on all ranks."""
    if isinstance(values[0], Tensor):
        return deal.tensors(values)
    if name != "kept":
        _common(name, values)
    return values[0]


def _common(name: str, values: Sequence[Any]) -> None:
    """Check that a value is the same on all ranks."""
    for value in values[1:]:
        if value != values[0] or type(value) is not type(values[0]):
            raise ResumeError(
                f"the states of all ranks are of one run and one moment, got {name}={values[0]} and {name}={value}: "
                "pass those that were saved together"
            )


def _order(lane: Tensor, lanes: int | None) -> Tensor:
    """Where in `lane` each lane is, [B]."""
    numbers, order = lane.sort()
    wanted = torch.arange(len(lane) if lanes is None else lanes)
    if not torch.equal(numbers, wanted):
        present = numbers.tolist()
        twice = sorted({number for number in present if present.count(number) > 1})
        missing = sorted(set(range(max(present[-1] + 1, len(wanted)))) - set(present))
        what = f"lane {twice[0]} twice" if twice else f"no lane {missing[0]}" if missing else f"{len(present)} lanes"
        raise ResumeError(
            f"the states of all ranks hold each lane once{'' if lanes is None else f', 0 to {lanes - 1}'}, got {what}: "
            "pass the state of each rank that there was, once"
        )
    return order


class _Deal:
    """Takes what ranks hold of their lanes, and gives one rank's lanes of it.

    Args:
        chosen: int64, the rank's lanes, as places in the old ranks' lanes one after the other.
        lanes: How many lanes each old rank has.
        lane_axis: Of the states; None: as they say, or as their shapes tell.
    """

    def __init__(self, *, chosen: Tensor, lanes: Sequence[int], lane_axis: Any) -> None:
        self._chosen = chosen
        self._lanes = lanes
        self._lane_axis = lane_axis

    def tensors(self, values: Sequence[Tensor], axis: int = 0) -> Tensor:
        """The rank's lanes of a tensor that each old rank has a part of."""
        device = values[0].device
        return torch.cat([value.to(device) for value in values], axis).index_select(axis, self._chosen.to(device))

    def segments(self, tables: Sequence[Tensor | None]) -> Tensor | None:
        """The rank's rows of tables of segments, int64 [S, 6], whose first column counts the lanes of a rank."""
        if any(table is None for table in tables):
            _common("segments", [table is not None for table in tables])
            return None
        first = [sum(self._lanes[:rank]) for rank in range(len(tables))]
        moved = []
        for table, shift in zip(tables, first, strict=True):
            assert table is not None
            moved.append(torch.cat([table[:, :1] + shift, table[:, 1:]], 1).cpu())
        rows = torch.cat(moved)
        places = [rows[rows[:, 0] == lane] for lane in self._chosen.tolist()]
        for place, part in enumerate(places):
            part[:, 0] = place
        return torch.cat(places) if places else rows[:0]

    def states(self, packed: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
        """The rank's lanes of a packed state; an old rank without one has lanes that reset before it is looked at.

        Raises:
            ResumeError: The states differ in more than their lanes, or their lane axis cannot be told.
        """
        there = [index for index, each in enumerate(packed) if each is not None]
        if not there:
            return None
        present = [each for each in packed if each is not None]
        _common("structure", [each["structure"] for each in present])
        axes = self._axes(present, [self._lanes[index] for index in there])
        leaves = []
        for place, axis in enumerate(axes):
            values = [each["leaves"][place] for each in present]
            if axis is None:
                if not all(_same(value, values[0]) for value in values):
                    raise ResumeError(
                        f"what a state holds beside its lanes is the same on all ranks, got {values[0]} and others in "
                        f"leaf {place}: give it a lane axis, or name it with lane_axis"
                    )
                leaves.append(values[0])
                continue
            # Lanes that nobody looks at get a state that the model can be run from.
            filler = values[0].narrow(axis, 0, 1)
            dealt = dict(zip(there, values, strict=True))
            leaves.append(
                self.tensors(
                    [
                        dealt[index] if index in dealt else filler.repeat_interleave(number, axis)
                        for index, number in enumerate(self._lanes)
                    ],
                    axis,
                )
            )
        return {"structure": present[0]["structure"], "leaves": leaves, "axes": axes}

    def _axes(self, packed: Sequence[Mapping[str, Any]], lanes: Sequence[int]) -> list[int | None]:
        """The lane axis of each leaf."""
        known = next((each["axes"] for each in packed if each["axes"] is not None), None)
        if self._lane_axis is not None:
            known = self._axes_of(packed[0], lanes[0], self._lane_axis)
        found: list[int | None] = []
        for place, leaf in enumerate(packed[0]["leaves"]):
            values = [each["leaves"][place] for each in packed]
            if not isinstance(leaf, Tensor):
                found.append(None)
                continue
            if not all(isinstance(value, Tensor) and value.dtype == leaf.dtype for value in values):
                raise ResumeError(
                    f"a leaf of a state has one dtype on all ranks, got {leaf.dtype} and another one in leaf {place}: "
                    "pass states of one model"
                )
            fitting = [axis for axis in range(leaf.ndim) if _fits(values, lanes, axis)]
            if known is not None:
                axis = known[place]
                if axis is not None and axis % max(leaf.ndim, 1) not in fitting:
                    raise ResumeError(
                        f"the lane axis of a state has one entry a lane and all others are of one size on all ranks, "
                        f"got lane axis {axis} for leaf {place} of shapes {_shapes(values)} and {list(lanes)} lanes: "
                        "pass states of one model, and the lane_axis that it has"
                    )
                found.append(axis)
            elif len(fitting) == 1:
                found.append(fitting[0])
            else:
                raise ResumeError(
                    f"the lane axis of a state is found only where one axis has the size of the lanes, got shapes "
                    f"{_shapes(values)} for {list(lanes)} lanes: pass lane_axis, an int or a tree like the state's"
                )
        return found

    @staticmethod
    def _axes_of(packed: Mapping[str, Any], lanes: int, lane_axis: Any) -> list[int | None]:
        try:
            return states.lane_axes(states.unpack(dict(packed)), lanes, lane_axis)
        except ValueError as error:
            raise ResumeError(str(error)) from error


def _fits(values: Sequence[Tensor], lanes: Sequence[int], axis: int) -> bool:
    """Whether tensors have their lanes on an axis and agree in all others."""
    others = {(*value.shape[:axis], *value.shape[axis + 1 :]) for value in values if value.ndim > axis}
    counted = all(value.ndim > axis and value.shape[axis] == n for value, n in zip(values, lanes, strict=True))
    return counted and len(others) == 1


def _shapes(values: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    return type(a) is type(b) and bool(a == b)


def _kept(parts: Sequence[Mapping[str, Any]], deal: _Deal) -> list[dict[str, Any]]:
    """The engines' kept states: from where the timesteps before the next window are run again."""
    kept = [{each["time"]: each["state"] for each in part["history"]["kept"]} for part in parts]
    dealt = []
    for time in sorted({time for each in kept for time in each}):
        for part, states_of in zip(parts, kept, strict=True):
            token = part["token"]
            goes_on = (token["sequence"] >= 0) & ~token["final"] & (part["began"] < time)
            if time not in states_of and goes_on.any():
                lane = int(token["lane"][goes_on.int().argmax()])
                raise ResumeError(
                    f"the state of each lane at timestep {time} is needed, got none for lane {lane}: pass the states "
                    "as they were saved"
                )
        dealt.append({"time": time, "state": deal.states([each.get(time) for each in kept])})
    return dealt


def redistribute_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    *,
    rank: int,
    world_size: int,
    lanes: int | None = None,
    lane_axis: Any = None,
    settings: Mapping[str, Any] | None = None,
    map_location: torch.device | str = "cpu",
    **parts: TakesState,
) -> dict[str, Mapping[str, Any]]:
    """Restore from the checkpoints of all ranks that there were, on another number of ranks.

    The states of `TBPTT` and `Carry` parts follow their lanes. Everything else is that of one old rank: models and
    optimizers are the same on all. Random generators too, but a rank that there was not gets a seed of its own.

    Args:
        paths: Of the files that `save_checkpoint` wrote at the same window, one of each old rank.
        rank, world_size, lanes, lane_axis: See `redistribute`.
        settings, map_location, parts: See `load_checkpoint`.

    Returns:
        All that was saved, by name, with the states that are now this rank's.

    Raises:
        ResumeError: A file is not what `load_checkpoint` takes, the states are not what `redistribute` takes, or
            the files are not of one run and one moment.
        ValueError: There is no path, or `rank` is not one of `world_size`.

    Example:
        >>> redistribute_checkpoints([f"rank-{r}.pt" for r in range(4)], rank=0, world_size=2, tbptt=tbptt,
        ...     model=model, optimizer=optimizer, stream=stream)  # doctest: +SKIP
    """
    if not paths:
        raise ValueError("redistribute_checkpoints takes the checkpoints of all ranks that there were, got none")
    carried: dict[str, list[Mapping[str, Any]]] = {}
    common: dict[str, list[Any]] = {}
    for path in paths:
        content = read_checkpoint(path, map_location)
        saved: dict[str, Mapping[str, Any]] = content["parts"]
        common.setdefault("settings", []).append(content["settings"])
        common.setdefault("parts", []).append(", ".join(sorted(saved)))
        for name, state in saved.items():
            if set(state) in (_CARRY, _ENGINE):
                carried.setdefault(name, []).append(state)
            elif set(state) >= _POSITION:
                common.setdefault(f"position {name}", []).append(dict(state))
    for name, values in common.items():
        _common(name, values)
    new = {
        name: redistribute(each, rank=rank, world_size=world_size, lanes=lanes, lane_axis=lane_axis)
        for name, each in carried.items()
    }
    others = {name: part for name, part in parts.items() if name not in new}
    one = load_checkpoint(paths[rank % len(paths)], settings=settings, map_location=map_location, **others)
    for name, part in parts.items():
        if name in new:
            part.load_state_dict(new[name])
    if rank >= len(paths):
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)
    return {**one, **new}
