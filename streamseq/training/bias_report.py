"""The bias report: what truncations would lose of a model's gradient, measured on sequences of a store."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from streamseq.core.grid import Grid
from streamseq.data.dataset import StreamDataset
from streamseq.storage.interface import Store
from streamseq.storage.store import open as open_store
from streamseq.tbptt.bias import Bias, measure_bias
from streamseq.tbptt.influence import Influence, measure_influence
from streamseq.training.bias_curve import draw_bias, new_figure
from streamseq.training.build import build_streams, load_model
from streamseq.training.holdout import Span
from streamseq.training.model import next_byte_loss
from streamseq.training.threads import thread_count

USUAL_PROBE = 1024
# More points than this say no more about a decay, and cost a call of the model each.
MOST_POINTS = 1024
# The state of the reference model: layers, lanes, units.
LANE_AXIS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What TBPTT(k1, k2) would lose.

    Args:
        k2: Timesteps that back-propagation reaches.
        depth: How far every loss looks back at least, k2 - k1 + 1.
        phi: The influence φ of the state that deep.
        delta: δ, the bound on the relative bias of losses that look back so far.
        relative: The relative bias of the gradient of all parameters, measured on the probe.
        cosine: Of the angle between that gradient and the exact one.
    """

    k2: int
    depth: int
    phi: float
    delta: float
    relative: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasReport:
    """What a trained model says of k2.

    Args:
        wish: The relative bias that is tolerated.
        k1: Timesteps between updates.
        k2: The smallest with δ below the wish; None: no decay was seen, or not fast enough.
        measured_k2: The smallest of those that were compared whose measured bias is below the wish; None: none is.
        truncations: Those that were compared.
        influence: What was measured of the states.
        sequences: Sequences, or parts of one, of the probe.
        probe: Timesteps of each.
        curve: Where the picture is, if one was asked for.
    """

    wish: float
    k1: int
    k2: int | None
    measured_k2: int | None
    truncations: list[Comparison]
    influence: Influence
    sequences: int
    probe: int
    curve: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: infinite numbers are None."""
        influence = self.influence
        curves = {"phi": influence.phi, "delta": influence.delta, "gradient_norm": influence.gradient_norms}
        return {
            "wish": self.wish,
            "k1": self.k1,
            "k2": self.k2,
            "measured_k2": self.measured_k2,
            "sequences": self.sequences,
            "probe": self.probe,
            "decays": influence.decays,
            "beta": influence.beta,
            "tau": influence.tau,
            "truncations": [{name: finite(value) for name, value in asdict(each).items()} for each in self.truncations],
            "lags": influence.lags.tolist(),
            **{name: [finite(value) for value in values.tolist()] for name, values in curves.items()},
            "curve": self.curve,
        }

    def as_table(self) -> str:
        """A few lines for a terminal."""
        lines = [
            f"{self.sequences} sequences of {self.probe:,} timesteps, an update every k1 = {self.k1}",
            f"{'k2':>8} {'depth':>8} {'phi':>10} {'delta':>10} {'measured':>10} {'cosine':>8}",
        ]
        lines += [
            f"{each.k2:8,} {each.depth:8,} {each.phi:10.3g} {each.delta:10.3g} {each.relative:10.3g} {each.cosine:8.4f}"
            for each in self.truncations
        ]
        return "\n".join([*lines, *self._verdict()])

    def _verdict(self) -> list[str]:
        influence = self.influence
        if not influence.decays:
            bound = (
                f"no decay seen: from lag {influence.tau:,} to {influence.lags[-1]:,} the influence does not fade; "
                "take the largest k2 that you can, k2 = n, or ss.truncation.Random"
            )
        elif self.k2 is None:
            bound = (
                f"no depth up to {influence.lags[-1]:,} has a bound delta below {self.wish:g}: take the largest k2 "
                "that you can, or a longer --probe"
            )
        else:
            bound = f"the bound: k2 = {self.k2:,} is the smallest with delta below {self.wish:g}"
        if self.measured_k2 is None:
            measured = f"measured: no k2 of the table has a bias below {self.wish:g} on this probe"
        else:
            measured = (
                f"measured: k2 = {self.measured_k2:,} is the smallest of the table with a bias below {self.wish:g}"
            )
        return [bound, measured] + ([f"the curve is in {self.curve}"] if self.curve else [])


def report_bias(
    store: Store | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    probe: int | None = None,
    bias: float = 0.1,
    k1: int | None = None,
    k2: Sequence[int] | None = None,
    lanes: int = 8,
    out: str | os.PathLike[str] | None = None,
) -> BiasReport:
    """Measure what truncations lose of the gradient of a model that `streamseq train` has trained.

    The probe is of the first timesteps of held-out sequences where those are long enough, else of any.

    Args:
        store: A store, or where one lies.
        checkpoint: The `checkpoint.pt` of a run, or the run's folder.
        probe: Timesteps of a sequence that are looked at; None: 1,024, or more for large k1 and k2, or what there is.
        bias: The relative bias that is tolerated.
        k1: Timesteps between updates; None: as in the run, or its window where that was n.
        k2: Those to compare; None: k1, 2 k1, 4 k1, … up to half the probe.
        lanes: How many sequences are looked at, at most.
        out: Where to draw the influence and the bias over the lag, a PNG; None: nowhere.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ImportError: `out` is given and matplotlib is not installed.
        ResumeError: The checkpoint is none of the trainer, or damaged.
        ValueError: A number is out of its range, or no sequence is long enough.
    """
    figure = None if out is None else new_figure()
    if not 0 < bias < math.inf:
        raise ValueError(f"the bias that is tolerated is a finite number above 0, got {bias}")
    if lanes < 1:
        raise ValueError(f"lanes is at least 1, got {lanes}")
    path = Path(checkpoint)
    path = path / "checkpoint.pt" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}: name the checkpoint.pt of a run of streamseq train")
    model, settings = load_model(path)
    if not isinstance(store, Store):
        store = open_store(store)
    k1 = settings.window_length if k1 is None else k1
    for each in k2 or [k1]:
        Grid(k1=k1, k2=each)
    split = build_streams(store, settings).split
    spans, probe = choose_spans(
        [split.held_out, split.train], probe, max(USUAL_PROBE, 4 * k1, 2 * max(k2 or [0])), lanes
    )
    if probe <= max(k1, 3):
        raise ValueError(
            f"a truncation shows on a probe longer than k1 and than 3 timesteps, got {probe} timesteps for k1={k1}: "
            "take a smaller k1, or a store of longer sequences"
        )
    compared = sorted(set(k2)) if k2 else [k1 << power for power in range(max(1, (probe // 2 // k1).bit_length()))]
    if compared[-1] > probe:
        raise ValueError(
            f"what k2 loses shows on a probe of at least as many timesteps, got k2={compared[-1]} and {probe}: take a "
            "longer probe, or a smaller k2"
        )
    stride = -(-probe // MOST_POINTS)
    points = min(-(-max(probe // 2, compared[-1] - k1 + 1) // stride), probe // stride - 1)
    options: dict[str, Any] = {"inputs": settings.field, "lane_axis": LANE_AXIS}
    # A call is of one timestep of a few lanes: too little for several threads.
    with thread_count(settings.threads or 1):
        windows = _stream(store, spans, settings.field, probe // stride * stride)
        lags = points * stride
        influence = measure_influence(model, next_byte_loss, windows[0], stride=stride, lags=lags, **options)
        windows = _stream(store, spans, settings.field, k1)
        biases = measure_bias(model, next_byte_loss, windows, k1=k1, k2=compared, **options)
    depth = influence.smallest(bias)
    report = BiasReport(
        wish=bias,
        k1=k1,
        k2=None if depth is None else depth + k1 - 1,
        measured_k2=next((each.k2 for each in biases if each.relative < bias), None),
        truncations=[comparison(each, influence) for each in biases],
        influence=influence,
        sequences=len(spans),
        probe=probe,
        curve=None if out is None else str(out),
    )
    if figure is not None and out is not None:
        draw_bias(
            figure,
            Path(out),
            influence,
            wish=bias,
            depths=[each.depth for each in report.truncations],
            measured=[each.relative for each in report.truncations],
        )
    return report


def choose_spans(parts: list[list[Span]], probe: int | None, usual: int, lanes: int) -> tuple[list[Span], int]:
    """Spans of equal length from the first part that has such, and their length."""
    if probe is None:
        probe = max(_most_timesteps([stop - start for _, start, stop in part], usual, lanes) for part in parts)
    pieces: list[Span] = []
    for part in parts:
        # Other sequences first, then further parts of the same ones.
        most = max((stop - start for _, start, stop in part), default=0) // probe if probe > 0 else 0
        starts = ((id, start + number * probe, stop) for number in range(most) for id, start, stop in part)
        pieces = list(
            islice(((id, start, start + probe) for id, start, stop in starts if start + probe <= stop), lanes)
        )
        if pieces:
            return pieces, probe
    longest = max(stop - start for part in parts for _, start, stop in part)
    raise ValueError(
        f"a probe lies within a sequence, got probe={probe}, the longest has {longest} timesteps to offer: take at "
        "most that many, and at least 1"
    )


def _most_timesteps(lengths: list[int], usual: int, lanes: int) -> int:
    """The length at which the most timesteps of at most so many sequences are looked at."""
    longest = sorted((min(length, usual) for length in lengths), reverse=True)[:lanes]
    return max(zip(longest, range(1, lanes + 1), strict=False), key=lambda each: each[0] * each[1], default=(0, 0))[0]


def _stream(store: Store, spans: list[Span], field: str, window: int) -> StreamDataset:
    """The spans side by side, one on each lane."""
    return StreamDataset(store, len(spans), window, sequences=spans, fields=[field], lookahead={"target": (field, 1)})


def comparison(bias: Bias, influence: Influence) -> Comparison:
    """A measured bias beside the bound at its smallest depth."""
    depth = bias.k2 - bias.k1 + 1
    place = influence.index(depth)
    return Comparison(
        k2=bias.k2,
        depth=depth,
        phi=float(influence.phi[place]),
        delta=float(influence.delta[place]),
        relative=bias.relative,
        cosine=bias.cosine,
    )


def finite(value: float) -> float | None:
    """For JSON: None where it is infinite or NaN."""
    return value if math.isfinite(value) else None
