"""`mark`: boundaries found in the newest version of a store, and stored beside its sequences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from streamseq.core.errors import CorruptionError, VersionConflictError
from streamseq.core.fields import Field
from streamseq.core.scan import Scanned
from streamseq.core.selection import select_all
from streamseq.core.splits import Domain, Rule, Where
from streamseq.storage.boundaries.find import check_rules, find_boundaries
from streamseq.storage.boundaries.kept import PREFIX, format_boundaries
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.versions.attach import attach
from streamseq.storage.versions.version import attachment_name

_TRIES = 10
# What versions do that leaves sequences where they are; what they add is behind.
_GOES_ON = ("write", "compact", "attach")


def mark(
    uri: str | os.PathLike[str] | Place,
    name: str,
    boundaries: Any,
    *,
    job: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Find boundaries in the newest version of a store, and store them beside its sequences, as a new version.

    `ss.splits.Domain(name)` streams windows that end there, and reads no field to know where; `store.boundaries(name)`
    is what was found. Contents and fingerprint stay. Boundaries of the same name are replaced; where they are the same
    already no version is made. Versions that add to the store keep them: they cover the timesteps that they were found
    in. A version that a job writes anew, or that a repair leaves sequences out of, has none.

    Args:
        uri: Where the store lies.
        name: Letters, digits, dots, hyphens, underscores and spaces.
        boundaries: What `ss.splits.Domain` takes: a rule or several.
        job: What the log of the store says did it; None: the name of the program.
        progress: Called with the timesteps that were looked through, and all.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Returns:
        The version that has them.

    Raises:
        StoreError: There is no store, or there are too many boundaries.
        VersionConflictError: The store was written anew or repaired meanwhile. Nothing was changed.
        KeyError, TypeError, ValueError: A rule does not go with the store; see `ss.splits.Domain`.
        CorruptionError: Stored bytes are not what was written.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/log.arrow", {"time": ss.Field("int64")}) as writer:
        ...         writer.write("a", time=np.array([80_000, 90_000, 100_000, 180_000]))
        ...     version = ss.mark(folder + "/log.arrow", "days", ss.splits.Calendar("time", every="day"))
        ...     store = ss.open(folder + "/log.arrow")
        ...     version, store.boundary_names, store.boundaries("days")["a"].positions.tolist()
        ...     stream = ss.StreamDataset(store, lanes=1, window=4, split=ss.splits.Domain("days"))
        ...     [window.lengths.tolist() for window in stream]
        (2, ['days'], [1, 3])
        [[1], [2], [1]]
    """
    return mark_all(place_of(uri, storage_options), {name: boundaries}, job=job, progress=progress)


def check_marks(boundaries: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Domain]:
    """Rules by name, as `mark_all` takes them, before anything is read.

    Args:
        boundaries: By name, what `ss.splits.Domain` takes.
        fields: Of the store that they are for.

    Raises:
        KeyError, TypeError, ValueError: A name is none, a rule is none, or one does not go with the fields.
    """
    splits = {}
    for name, given in boundaries.items():
        if not isinstance(name, str):
            raise TypeError(f"boundaries have a name, got {name!r}")
        attachment_name(PREFIX + name)
        splits[name] = given if isinstance(given, Domain) else Domain(given)
        check_rules(fields, splits[name])
    return splits


def mark_all(
    place: Place,
    boundaries: Mapping[str, Any],
    *,
    job: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Do as `mark` does with several, by name, in one version; what its fields said already is not looked for again.

    Returns:
        The version that has them.

    Raises:
        See `mark`.
    """
    base = DiskStore(place)
    splits = check_marks(boundaries, base.fields)
    content = {}
    for name, split in splits.items():
        rules = [_text(rule) for rule in split.rules]
        stored = None
        # Broken ones are replaced.
        with contextlib.suppress(KeyError, CorruptionError):
            stored = base.boundaries(name)
        same = stored is not None and stored.whole and list(stored.rules) == rules
        if same and _decides(split, rules):
            continue
        found = find_boundaries(base, split, select_all(base.lengths), progress)
        if stored is None or not same or stored.boundaries.fingerprint != found.fingerprint:
            content[PREFIX + name] = format_boundaries(base.version, rules, base.lengths, found)
    if not content:
        return base.version
    newest = base
    for _ in range(_TRIES):
        try:
            return attach(place, newest.version, content, job)
        except VersionConflictError:
            newest = _newest_after(newest)
    raise VersionConflictError(
        f"{place.uri} got {_TRIES} versions while boundaries were to be stored; nothing was changed: mark it when "
        "fewer writers are at work"
    )


def _newest_after(base: DiskStore) -> DiskStore:
    """The newest version, where it has the sequences of one before at the same places.

    Raises:
        VersionConflictError: It does not go on from that one.
    """
    newest = DiskStore(base.place)
    for number in range(base.version + 1, newest.version + 1):
        operation = DiskStore(base.place, number).snapshot.operation
        if operation not in _GOES_ON:
            raise VersionConflictError(
                f"boundaries are of the sequences that they were found in, and version {number} of {base.uri} has "
                f"others ({operation}); nothing was changed: mark it again"
            )
    return newest


def _text(rule: Rule) -> str:
    if not isinstance(rule, Where):
        return " ".join(repr(rule).split())
    # Not its address, which says nothing later.
    name = getattr(rule.function, "__qualname__", type(rule.function).__qualname__)
    return f"Where({name}, fields={rule.fields}, reset={rule.reset})"


def _decides(split: Domain, rules: list[str]) -> bool:
    """Whether the texts say all of the rules, so that the same texts mean the same boundaries."""
    return all(isinstance(rule, Scanned) for rule in split.rules) and not any("..." in rule for rule in rules)
