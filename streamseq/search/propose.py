"""From evidence to proposals: k1 and k2, lanes, layout and split, each with its reason and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from streamseq.data.dataset import StreamDataset
from streamseq.search.dependence import Dependence
from streamseq.search.probe_training import ProbeTraining
from streamseq.search.space import Value
from streamseq.storage.interface import Store
from streamseq.tbptt.influence import Influence

#: The smallest k1 that is proposed: shorter windows spend their time on calls.
SMALLEST = 8
# k1 and k2 are multiples of it.
_MULTIPLE = 4
_LANES = 32
# Updates of an epoch that are wanted at least before there are fewer lanes.
_UPDATES = 20
# Lanes are filled so far, or the data is cut for them.
_FILLED = 0.9
# More sequences are laid out by no lane's chance.
_PLANNED = 1 << 20
# Fewer timesteps say little.
_FEW = 4096

GOOD, FAIR, WEAK = "good", "fair", "weak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One setting that is proposed.

    Args:
        name: Of the setting, as `TrainingSettings` has it.
        value: None stands for what is usual.
        why: A sentence.
        sure: "good": measured in two ways, or certain; "fair": in one; "weak": little was measured, or it contradicts.
        others: Values that are worth a try as well.
    """

    name: str
    value: Value
    why: str
    sure: str
    others: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How far back a loss is to look.

    Args:
        timesteps: So many, at least 1.
        why: What says so.
        sure: As in `Proposal`.
    """

    timesteps: int
    why: str
    sure: str


def find_depth(
    dependences: Sequence[Dependence], influence: Influence | None, probe: ProbeTraining | None, *, bias: float
) -> Depth:
    """The depth that the data and a model ask for: the larger one.

    Args:
        dependences: Of the data, field by field.
        influence: Of a model's states; None where there is no model.
        probe: How the model was trained; None: it is the user's, and taken for one that has learnt.
        bias: The bound on the relative bias that is tolerated.
    """
    found = max(dependences, key=lambda each: each.memory, default=None)
    memory = 0 if found is None else found.memory
    few = sum(each.timesteps for each in dependences) < _FEW
    # An input k timesteps before a target is k timesteps deep, and one more where the target is of the same timestep.
    data = memory + 1 if memory else 1
    whose = "your model" if probe is None else "the probe model"
    if found is not None and memory:
        said = f"{found.field} depends on {memory:,} timesteps before ({found.kind})"
    else:
        said = (
            "the data shows no dependence between pairs of timesteps" if dependences else "the data was not looked at"
        )
    if influence is None:
        return Depth(timesteps=data, why=f"{said}; there is no model to ask", sure=WEAK if few else FAIR)
    if probe is not None and not probe.learnt:
        told = f"{said}; {whose} has learnt nothing of the past in {probe.updates:,} updates and does not count"
        return Depth(timesteps=data, why=told, sure=WEAK if few else FAIR)
    depth = influence.smallest(bias)
    if depth is None:
        longest = int(influence.lags[-1])
        return Depth(
            timesteps=max(data, longest),
            why=f"{said}; in {whose} the influence of states does not fade within {longest:,} timesteps",
            sure=WEAK,
        )
    told = f"{said}; in {whose} the bound on the bias is below {bias:g} from {depth:,} timesteps on"
    agree = memory > 0 and 0.5 <= depth / data <= 2
    return Depth(timesteps=max(data, depth), why=told, sure=GOOD if agree else FAIR)


def fit_k(depth: int, longest: int, k1: int | None = None) -> tuple[int, int]:
    """k1 and k2 with which every loss looks back so far: k2 = depth + k1 - 1, k1 half of the depth.

    Args:
        depth: Timesteps.
        longest: Of the sequences: k2 goes no further.
        k1: Where it is given.

    Example:
        >>> fit_k(1, 1000), fit_k(49, 1000), fit_k(49, 1000, k1=1), fit_k(49, 60)
        ((8, 8), (28, 76), (1, 49), (28, 60))
    """
    if k1 is not None:
        return k1, max(k1, min(depth + k1 - 1, longest))
    k1 = min(max(SMALLEST, _rounded(-(-depth // 2))), longest)
    return k1, max(k1, min(_rounded(depth + k1 - 1) if depth > 1 else k1, longest))


def propose_k(k1: int, k2: int, depth: Depth, *, given: bool) -> list[Proposal]:
    """k1 and k2 with their reasons."""
    if given:
        first = "it was given"
    elif k1 == k2:
        first = "as small as is sensible: shorter windows spend their time on calls"
    else:
        first = f"half of the depth: every loss looks back {k2 - k1 + 1:,} timesteps, for {k2 / k1:.1f} times the work"
    return [
        Proposal(name="k1", value=k1, why=first, sure=GOOD if given else depth.sure),
        Proposal(name="k2", value=k2, why=depth.why, sure=depth.sure),
    ]


def propose_lanes(store: Store, k1: int) -> list[Proposal]:
    """Lanes and layout, from the lengths alone."""
    lengths = store.lengths[store.lengths > 0]
    total = int(lengths.sum())
    lanes = max(1, min(_LANES, total // (_UPDATES * k1)))
    if lanes == _LANES:
        why = f"usual, and an epoch of {total:,} timesteps has {total // (lanes * k1):,} updates; no speed was measured"
    else:
        why = f"few: an epoch of {total:,} timesteps has {_UPDATES} updates so"
    found = [Proposal(name="lanes", value=lanes, why=why, sure=FAIR)]
    if len(lengths) < lanes:
        return [*found, _layout("even", f"{len(lengths):,} sequences cannot fill {lanes} lanes", GOOD)]
    if len(lengths) > _PLANNED:
        return [*found, _layout("sequences", f"{len(lengths):,} sequences fill any lane", FAIR)]
    occupancy = StreamDataset(store, lanes, k1).occupancy
    used = occupancy.busy * occupancy.filled
    why = f"whole sequences fill {100 * used:.0f} % of the lanes' timesteps"
    if used >= _FILLED:
        return [*found, _layout("sequences", why, GOOD)]
    cut = StreamDataset(store, lanes, k1, layout="even").occupancy
    if cut.busy * cut.filled <= used + (1 - _FILLED) / 2:
        return [*found, _layout("sequences", f"{why}, and cutting them would not fill more", GOOD)]
    return [*found, _layout("even", f"{why}, and equal runs {100 * cut.busy * cut.filled:.0f} %", GOOD)]


def propose_split(store: Store) -> Proposal:
    """Where windows end, from the boundaries that are stored.

    Boundaries at which the state does not begin anew are worth a try: a search compares the two.
    """
    breaks: list[tuple[str, int]] = []
    others: list[tuple[str, int]] = []
    for name in store.boundary_names:
        found = store.boundaries(name).boundaries
        if len(found):
            distance = math.ceil(store.num_timesteps / len(found))
            (breaks if found.breaks.any() else others).append((name, distance))
    if breaks:
        name, distance = breaks[0]
        why = f"at the boundaries {name!r}, every {distance:,} timesteps on average, the state begins anew"
        return Proposal(name="split", value=f"domain:{name}", why=why, sure=GOOD)
    if others:
        name, distance = others[0]
        why = f"windows that end at the boundaries {name!r}, every {distance:,} timesteps, are worth a try as well"
        return Proposal(name="split", value="naive", why=why, sure=FAIR, others=(f"domain:{name}",))
    return Proposal(name="split", value="naive", why="no boundaries are stored", sure=GOOD)


def _layout(value: str, why: str, sure: str) -> Proposal:
    return Proposal(name="layout", value=value, why=why, sure=sure)


def _rounded(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE
