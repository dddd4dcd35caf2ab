"""What is streamed: the chosen sequences of a store, or of several, with their boundaries, lanes and classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from streamseq.core.balance import Balance, Classes
from streamseq.core.boundaries import Boundaries
from streamseq.core.errors import PlanError
from streamseq.core.mixing import Mix, allot_lanes
from streamseq.core.plan import Plan
from streamseq.core.selection import Selection
from streamseq.core.settings import PlanSettings, at_least
from streamseq.core.splits import Domain
from streamseq.data.requests import Emitted
from streamseq.storage.boundaries.find import find_boundaries
from streamseq.storage.chosen import choose
from streamseq.storage.interface import Store
from streamseq.storage.joined import JoinedStore, join

Stores = Store | Mapping[str, Store] | Iterable[Store]


def one_store(store: Stores) -> Store:
    """The store that is streamed: the one that was given, or several end to end.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(store, Store):
        return store
    if isinstance(store, Mapping | list | tuple):
        return join(store)
    raise TypeError(
        f"a stream reads a store, got a {type(store).__name__}: pass ss.open(uri) or ss.from_arrays(), or several in a "
        "list or dict"
    )


def find_emitted(
    store: Store, fields: Iterable[str] | None, lookahead: Mapping[str, tuple[str, int]]
) -> dict[str, Emitted]:
    """What windows hold, by name.

    Raises:
        KeyError: There is no such field.
        TypeError, ValueError: It cannot be that; or several stores do not agree on a field.
    """
    if isinstance(fields, str):
        raise TypeError(f"fields is a list of names, got the string {fields!r}: pass [{fields!r}]")
    if isinstance(store, JoinedStore) and fields is None:
        store.check_fields(None)
    emitted = {name: Emitted(field=name) for name in (store.fields if fields is None else fields)}
    for name, source in lookahead.items():
        try:
            field, offset = source
        except (TypeError, ValueError):
            raise TypeError(f"a lookahead is name: (field, offset), got {name!r}: {source!r}") from None
        if isinstance(offset, bool) or not isinstance(offset, int):
            raise TypeError(f"a lookahead's offset is an integer, got {offset!r} for {name!r}")
        if name in emitted:
            raise ValueError(f"a lookahead has a name of its own, got {name!r}, which is a field: choose another")
        emitted[name] = Emitted(field=field, offset=offset)
    if isinstance(store, JoinedStore):
        store.check_fields([each.field for each in emitted.values()])
    for each in emitted.values():
        if each.field not in store.fields:
            raise KeyError(f"the store has fields {', '.join(store.fields)}, not {each.field!r}")
    if not emitted:
        raise ValueError("a stream emits at least one field, got fields=[]: pass fields=None for all")
    return emitted


def share_lanes(store: Store, lanes: Any, weights: Any) -> tuple[int, tuple[int, ...] | None]:
    """The number of lanes, and how many each store has; None where stores have no lanes of their own.

    Args:
        store: One, or several end to end.
        lanes: A number; or several, one for each store, in their order or by name.
        weights: Of each store, in their order or by name; None: they have no lanes of their own unless `lanes` says so.

    Raises:
        PlanError: There are fewer lanes than stores.
        TypeError, ValueError: They do not go with the stores.
    """
    several = isinstance(lanes, Mapping | list | tuple)
    if weights is None and not several:
        return lanes, None
    if not isinstance(store, JoinedStore):
        given = f"lanes={lanes!r}" if several else f"weights={weights!r}"
        raise ValueError(f"stores of a mix share lanes, and this is one store, got {given}: pass several stores")
    if several:
        if weights is not None:
            raise ValueError(f"lanes of each store or weights, got lanes={lanes!r} and weights={weights!r}: pass one")
        shares = _by_store(store, "lanes", lanes)
        for each in shares:
            at_least("the lanes of a store", each, 1)
        return sum(shares), tuple(int(each) for each in shares)
    at_least("lanes", lanes, 1)
    return lanes, allot_lanes(_by_store(store, "weights", weights), int(lanes))


def _by_store(store: JoinedStore, what: str, given: Any) -> list[Any]:
    names = list(store.stores)
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise ValueError(f"{what} are by the names of the stores, {', '.join(names)}, got {dict(given)}")
        return [given[name] for name in names]
    values = list(given)
    if len(values) != len(names):
        raise ValueError(f"{what} has one number for each of the stores {', '.join(names)}, got {values}")
    return values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What is to be streamed, of whatever version of a store.

    Args:
        sequences: Ids or spans; None for all.
        shares: Lanes of each store, where they have lanes of their own.
        until: What happens where one store ends before another.
        balance: How sequences are drawn by class; None: each comes once.
    """

    sequences: Iterable[Any] | None = None
    shares: tuple[int, ...] | None = None
    until: str = "all"
    balance: Balance | None = None

    def __post_init__(self) -> None:
        if self.shares is None and self.until != "all":
            raise ValueError(
                f'until says what happens where a store with lanes of its own ends, got until="{self.until}" without '
                "any: pass weights"
            )

    def found_in(self, store: Store, settings: PlanSettings) -> Streamed:
        """What of a store is streamed.

        Raises:
            KeyError: There is no such sequence.
            PlanError: There is none; or none of a store that has lanes of its own.
            ValueError, TypeError: What is wanted is not what the store has.
        """
        selection, order, mix = choose(store, self.sequences), None, None
        if self.shares is not None and isinstance(store, JoinedStore):
            rows = store.first
            if selection.sequence is not None and selection.start is not None:
                part = store.member_of(selection.sequence)
                order = np.argsort(part, kind="stable")
                selection = Selection(
                    lengths=selection.lengths[order],
                    sequence=selection.sequence[order],
                    start=selection.start[order],
                )
                rows = np.searchsorted(part[order], np.arange(len(store.stores) + 1))
            for name, (low, high) in zip(store.stores, pairwise(rows.tolist()), strict=True):
                if not selection.lengths[low:high].any():
                    raise PlanError(
                        f"every store of a mix has a timestep, and none of {name!r} was chosen: choose some, or leave "
                        "the store out"
                    )
            mix = Mix(rows=rows, lanes=self.shares, until=self.until)
        boundaries = find_boundaries(store, settings.split, selection) if isinstance(settings.split, Domain) else None
        classes = None
        if self.balance is not None:
            classes = find_classes(store, selection, self.balance, order)
        return Streamed(store=store, selection=selection, boundaries=boundaries, mix=mix, classes=classes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Streamed:
    """What is streamed of one version of a store.

    Args:
        store: The store.
        selection: The chosen spans; where stores have lanes of their own, store by store.
        boundaries: With the domain split.
        mix: The spans and lanes of each store, where they have lanes of their own.
        classes: Of the spans, where they are drawn by class.
    """

    store: Store
    selection: Selection
    boundaries: Boundaries | None
    mix: Mix | None
    classes: Classes | None

    def plan(self, settings: PlanSettings, *, contents: str, epoch: int) -> Plan:
        """The plan of an epoch."""
        return Plan(
            self.selection,
            settings,
            contents=contents,
            epoch=epoch,
            boundaries=self.boundaries,
            mix=self.mix,
            classes=self.classes,
        )


def find_classes(store: Store, selection: Selection, balance: Balance, order: Any = None) -> Classes:
    """The class of each chosen span.

    Args:
        store: Whose attributes say it.
        selection: The spans.
        balance: Which attribute, or the classes themselves.
        order: The places that the spans had before they were sorted; None: they were not.

    Raises:
        ValueError: A sequence has no such attribute, or one that is no plain value; there are more or fewer classes
            than spans; or a class has no weight, or a weight no class.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [1]}, "b": {"x": [2]}}, attrs={"a": {"kind": 7}, "b": {"kind": 5}})
        >>> find_classes(store, choose(store, None), Balance("kind")).number.tolist()
        [0, 1]
    """
    values: list[Any]
    if isinstance(balance.by, str):
        sequences = selection.sequences_of(np.arange(len(selection)))
        values = [_attribute(store, sequence, balance.by) for sequence in sequences.tolist()]
        numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
        number = np.fromiter((numbers[value] for value in values), np.int64, len(values))
        known = list(numbers)
    else:
        given = np.asarray(balance.by)
        if len(given) != len(selection):
            raise ValueError(
                f"balance has a class for each of the {len(selection)} chosen sequences, got {len(given)}: pass them "
                "in the order of `sequences`, or of store.ids"
            )
        distinct, number = np.unique(given if order is None else given[order], return_inverse=True)
        known = distinct.tolist()
    if balance.weights is None:
        return Classes(number=number, weights=np.ones(len(known)))
    if set(balance.weights) != set(known):
        extra, missing = set(balance.weights) - set(known), set(known) - set(balance.weights)
        what = f"{min(missing, key=repr)!r} has none" if missing else f"there is no {min(extra, key=repr)!r}"
        raise ValueError(
            f"every class that the chosen sequences have has a weight, and no other, and {what}: give it one, 0 to "
            "draw none of it, or leave it out"
        )
    return Classes(number=number, weights=np.array([balance.weights[value] for value in known], np.float64))


def _attribute(store: Store, sequence: int, name: str) -> Any:
    attrs = store.attrs(sequence)
    if name not in attrs:
        raise ValueError(
            f"balance is by attribute {name!r}, which sequence {store.id_of(sequence)!r} does not have, it has "
            f"{', '.join(attrs) or 'none'}: leave it out of `sequences`, or pass Balance(classes) with an array"
        )
    value = attrs[name]
    if isinstance(value, list | dict):
        raise ValueError(
            f"a class is text, a number, true, false or null, got {value!r} as {name!r} of "
            f"{store.id_of(sequence)!r}: pass Balance(classes) with an array"
        )
    return value


def idle_lanes(streamed: Streamed, plan: Plan) -> Iterator[str]:
    """Say which lanes hold nothing, as there are fewer sequences than lanes."""
    lengths, mix = streamed.selection.lengths, streamed.mix
    held, shares, names = [int(np.count_nonzero(lengths))], [int(plan.settings.lanes)], [""]
    parts = ""
    if mix is not None and isinstance(streamed.store, JoinedStore):
        if mix.until == "repeat":
            return
        held = [int(np.count_nonzero(lengths[low:high])) for low, high in pairwise(mix.rows.tolist())]
        shares, names = list(mix.lanes), [f" of store {name!r}" for name in streamed.store.stores]
    elif streamed.boundaries is not None and streamed.boundaries.breaks.any():
        held, parts = [plan.num_groups], " parts between breaks"
    for count, lanes, name in zip(held, shares, names, strict=True):
        if count < lanes:
            yield (
                f"fewer sequences than lanes: {count}{parts} for {lanes}{name}, so {lanes - count} lanes stay idle; "
                f'layout="even" cuts the data into {lanes} runs of equal length instead'
            )
