"""Transforms beside what they are to do to a whole sequence, in plain numpy; and sources cut anywhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streamseq as ss
from streamseq.etl import Partition, Piece, Skipped
from streamseq.etl.transforms import (
    Cast,
    Clip,
    Derivative,
    FillGaps,
    Filter,
    Normalise,
    OneHot,
    Rename,
    Resample,
    Scan,
    Windowed,
)

Arrays = dict[str, NDArray[Any]]
FIELDS = {"time": ss.Field("int64"), "x": ss.Field("float64", (2,)), "label": ss.Field("uint8")}


def values(seed: int, steps: int) -> Arrays:
    """Timesteps of FIELDS: ascending times with gaps, distinct x."""
    random = np.random.default_rng(seed)
    times = 1_700_000_000_000_000_000 + 10 * np.cumsum(random.integers(1, 4, steps))
    x = 100_000.0 * seed + random.permutation(2 * steps).reshape(steps, 2)
    return {"time": times, "x": x, "label": random.integers(0, 4, steps).astype(np.uint8)}


def around(values: NDArray[Any], before: int, after: int, edges: float | str) -> NDArray[Any]:
    """The timesteps around each one, [n, W, *D]."""
    how: dict[str, Any] = {"mode": "edge"} if edges == "nearest" else {"mode": "constant", "constant_values": edges}
    padded = np.pad(values, [(before, after)] + [(0, 0)] * (values.ndim - 1), **how)
    return np.stack([padded[start : start + before + 1 + after] for start in range(len(values))])


def filtered(taps: Sequence[float], after: int, edges: float | str) -> Callable[[Arrays], Arrays]:
    def whole(arrays: Arrays) -> Arrays:
        windows = around(arrays["x"], len(taps) - 1 - after, after, edges)
        return {**arrays, "x": np.einsum("nwd,w->nd", windows, np.array(taps[::-1]))}

    return whole


def derived(time: str | None) -> Callable[[Arrays], Arrays]:
    def whole(arrays: Arrays) -> Arrays:
        if len(arrays["x"]) == 1:
            return {**arrays, "dx": np.full_like(arrays["x"], np.nan)}
        spacing = 0.5 if time is None else (arrays[time] - arrays[time][0]).astype(np.float64)
        return {**arrays, "dx": np.gradient(arrays["x"], spacing, axis=0)}

    return whole


def medians(windows: Mapping[str, NDArray[Any]]) -> Arrays:
    return {
        "time": windows["time"][:, 2],
        "x": np.median(windows["x"], axis=1),
        "label": windows["label"].max(axis=1),
    }


def windowed(arrays: Arrays) -> Arrays:
    return medians({name: around(values, 2, 3, "nearest") for name, values in arrays.items()})


def resampled(rate: str, to: str, methods: Mapping[str, str]) -> Callable[[Arrays], Arrays]:
    step = Fraction(rate) / Fraction(to)

    def one(values: NDArray[Any], number: int, method: str) -> Any:
        start = step * number
        if method == "nearest":
            return values[floor(start + Fraction(1, 2))]
        base = values[floor(start)]
        if method == "linear":
            share = start - floor(start)
            added = float(share) * (values[floor(start) + 1] - base) if share else 0 * base
        else:
            parts = [(place, min(place + 1, start + step) - max(place, start)) for place in range(len(values))]
            parts = [(place, part) for place, part in parts if part > 0]
            added = sum(float(part) * (values[place] - base) for place, part in parts)
            added = added / float(sum(part for _, part in parts))
        return base + (np.rint(added).astype(np.int64) if values.dtype.kind == "i" else added)

    def whole(arrays: Arrays) -> Arrays:
        count = floor((len(arrays["x"]) - 1) / step) + 1
        return {
            name: np.array([one(values, number, methods[name]) for number in range(count)], values.dtype)
            for name, values in arrays.items()
        }

    return whole


def filled(fill: Mapping[str, Any], longest: int | None) -> Callable[[Arrays], Arrays]:
    def whole(arrays: Arrays) -> Arrays:
        rows: list[dict[str, Any]] = []
        for place, time in enumerate(arrays["time"]):
            missing = 0 if not place else round((time - arrays["time"][place - 1]) / 10) - 1
            for number in range(missing if longest is None or missing <= longest else 0):
                row = {name: values[place - 1] for name, values in arrays.items()}
                row |= {name: np.full_like(row[name], with_) for name, with_ in fill.items() if with_ != "forward"}
                rows.append({**row, "time": arrays["time"][place - 1] + 10 * (number + 1), "observed": False})
            rows.append({name: values[place] for name, values in arrays.items()} | {"observed": True})
        dtypes = {name: values.dtype for name, values in arrays.items()} | {"observed": np.dtype(bool)}
        return {name: np.array([row[name] for row in rows], dtype) for name, dtype in dtypes.items()}

    return whole


def sums(total: Any, arrays: Arrays) -> tuple[Any, Arrays]:
    running = np.add.accumulate(np.concatenate([total[None], arrays["x"]]))[1:]
    return running[-1], {**arrays, "x": running}


def pairs(held: Any, arrays: Arrays) -> tuple[Any, Arrays]:
    """Only every second timestep, the later of two; the odd one at the end comes out at last."""
    joined = {name: np.concatenate([held[name], values]) if held else values for name, values in arrays.items()}
    whole = len(joined["x"]) // 2 * 2
    return {name: v[whole:] for name, v in joined.items()}, {name: v[1:whole:2] for name, v in joined.items()}


def paired(arrays: Arrays) -> Arrays:
    steps = len(arrays["x"])
    return {name: v[sorted({*range(1, steps, 2), *([steps - 1] if steps % 2 else [])})] for name, v in arrays.items()}


def doubled(arrays: Arrays) -> Arrays:
    return {**arrays, "x": 2 * arrays["x"]}


NEAR = {"time": "nearest", "x": "nearest", "label": "nearest"}
LINEAR = {"time": "linear", "x": "linear", "label": "nearest"}
MEAN = {"time": "mean", "x": "mean", "label": "nearest"}
FORWARD = {"x": "forward", "label": "forward"}
CONSTANT = {"x": -1.0, "label": 7}

#: Transforms that leave FIELDS as they are, which can follow each other.
STEPWISE = [
    (doubled, doubled),
    (Clip("x", 3, [90_000.0, 1e6]), lambda a: {**a, "x": np.clip(a["x"], 3, [90_000.0, 1e6])}),
    (Normalise("x", [3, 4], 2.0), lambda a: {**a, "x": (a["x"] - [3, 4]) / 2.0}),
]
HALO = [
    (Filter("x", [0.25, 0.5, -2.0, 8.0]), filtered([0.25, 0.5, -2.0, 8.0], 1, "nearest")),
    (Filter("x", [1.0, 2.0, 3.0], ahead=0, edges=5.0), filtered([1.0, 2.0, 3.0], 0, 5.0)),
    (Filter("x", [1.0, 2.0, 3.0], ahead=2), filtered([1.0, 2.0, 3.0], 2, "nearest")),
    (Windowed(medians, before=2, after=3), windowed),
]
IN_ORDER = [
    (Resample(3, 2, NEAR), resampled("3", "2", NEAR)),
    (Resample(0.3, 0.7, LINEAR), resampled("0.3", "0.7", LINEAR)),
    (Resample(7, 2, MEAN), resampled("7", "2", MEAN)),
    (Resample(5, 4, MEAN), resampled("5", "4", MEAN)),
    (FillGaps("time", 10, mask=None), lambda a: {k: v for k, v in filled(FORWARD, None)(a).items() if k != "observed"}),
    (Scan(sums, np.zeros(2)), lambda a: {**a, "x": np.cumsum(a["x"], axis=0)}),
    (Scan(pairs, None, end=lambda held: held), paired),
]
#: Transforms after which there are other fields.
LAST = [
    (Cast("x", "float32"), lambda a: {**a, "x": a["x"].astype(np.float32)}),
    (OneHot("label", 4), lambda a: {**a, "label": np.eye(4, dtype=np.uint8)[a["label"]]}),
    (Rename("x", "y"), lambda a: {"time": a["time"], "y": a["x"], "label": a["label"]}),
    (Derivative("x", step=0.5, into="dx"), derived(None)),
]
#: Transforms that need the times as they were.
TIMED = [
    (Derivative("x", time="time", into="dx"), derived("time")),
    (FillGaps("time", 10, CONSTANT, longest=1), filled(CONSTANT, 1)),
    (FillGaps("time", 10, FORWARD), filled(FORWARD, None)),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a source plans to hand on: timesteps of a sequence; or nothing, if they turn out to be bad."""

    id: str
    start: int
    stop: int
    bad: bool = False


class CutSource:
    """Sequences in pieces and partitions that are cut anywhere.

    Args:
        sequences: The arrays by id.
        cut: The parts of each partition.
        declared: Whether partitions say what goes on in them.
    """

    fields = FIELDS
    threads = True

    def __init__(
        self, sequences: Mapping[str, Arrays], cut: Sequence[Sequence[Part]], *, declared: bool = True
    ) -> None:
        self.sequences, self.cut, self.declared = sequences, cut, declared

    def partitions(self, target_bytes: int) -> list[Partition]:
        found = []
        for number, parts in enumerate(self.cut):
            later = [part.id for following in self.cut[number:] for part in following]
            earlier = [part.id for before in self.cut[:number] for part in before]
            continues = later[0] if later and earlier and earlier[-1] == later[0] else None
            size = sum(1 + part.stop - part.start for part in parts)
            found.append(Partition(num_bytes=size, content=number, continues=continues if self.declared else None))
        return found

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        for part in self.cut[partition.content]:
            if part.bad:
                yield Skipped(what=part.id, place=f"timestep {part.start}", reason="bad", num_bytes=1)
                continue
            arrays = {name: values[part.start : part.stop] for name, values in self.sequences[part.id].items()}
            yield Piece(id=part.id, arrays=arrays, attrs={"id": part.id} if not part.start else None)

    def good(self, id: str) -> Arrays:
        """What is handed on of a sequence, all partitions together."""
        parts = [part for parts in self.cut for part in parts if part.id == id and not part.bad]
        return {
            name: np.concatenate([values[part.start : part.stop] for part in parts] or [values[:0]])
            for name, values in self.sequences[id].items()
        }
