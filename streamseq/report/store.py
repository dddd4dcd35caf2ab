"""The report of a store: versions, fields, lengths, values, boundaries, and how it lies on lanes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import StreamseqError
from streamseq.core.sizes import format_bytes
from streamseq.report.figures import count, number, plural, share
from streamseq.report.lanes import lanes_section
from streamseq.report.markup import shown
from streamseq.report.parts import Cell, Chart, Facts, Note, Page, Part, Row, Section, Table, View
from streamseq.report.spread import lengths_table, lengths_views, values_view
from streamseq.storage.boundaries.kept import StoredBoundaries
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.figures import figures
from streamseq.storage.interface import Store
from streamseq.storage.statistics.channels import Statistics
from streamseq.storage.upkeep.history import Entry, log
from streamseq.storage.upkeep.summary import Info, info

# What a page has room for.
_MOST_VERSIONS, _MOST_SEQUENCES, _MOST_CHANNELS = 50, 10, 64
_MOST_PICTURES, _MOST_VIEWS = 12, 8
# Boundaries whose distances are looked at: more say no more.
_MOST_BOUNDARIES = 10_000_000


def store_page(store: Store, lanes: int | None, window: int | None) -> Page:
    """What there is to say of a store.

    Args:
        store: On disk, in object storage, adopted or in memory.
        lanes, window: Of the schedule; None: the usual ones.
    """
    said = history = None
    if isinstance(store, DiskStore):
        said, history = info(store.place, store.version), log(store.place)
    sections = [
        *([_versions(store, history)] if history is not None else []),
        _fields(store, said),
        _lengths(store),
        *_values(store),
        *_boundaries(store),
        lanes_section(store, lanes, window),
    ]
    key = [
        ("sequences", count(len(store))),
        ("timesteps", count(store.num_timesteps)),
        ("fields", count(len(store.fields))),
    ]
    if said is not None:
        key += [("stored", format_bytes(said.bytes)), ("compression", f"{number(said.ratio, 3)} ×")]
    key.append(("version", f"{store.version} of {len(store.versions):,}"))
    name = store.uri.rstrip("/").rsplit("/", 1)[-1] or store.uri
    return Page(kind="store", title=name, place=store.uri, facts=Facts(rows=key, large=True), sections=sections)


def _versions(store: Store, history: Sequence[Entry]) -> Section:
    rows = []
    for entry in reversed(history[-_MOST_VERSIONS:]):
        numbers = (entry.sequences, entry.sequences_added, entry.timesteps, entry.timesteps_added, entry.bytes_added)
        shown_numbers = (
            count(entry.sequences),
            f"{entry.sequences_added:+,}",
            count(entry.timesteps),
            f"{entry.timesteps_added:+,}",
            format_bytes(entry.bytes_added),
        )
        rows.append(
            Row(
                [
                    Cell(str(entry.version), entry.version),
                    Cell(entry.created.replace("T", " ")[:16]),
                    Cell(shown(entry.operation, 40)),
                    *(
                        Cell("–") if entry.problem else Cell(text, value)
                        for text, value in zip(shown_numbers, numbers, strict=True)
                    ),
                    Cell(shown(entry.problem or entry.job, 200)),
                ],
                mark="best" if entry.version == store.version else "dim" if entry.problem else "",
            )
        )
    columns = ["version", "made (UTC)", "by", "sequences", "added", "timesteps", "more", "bytes added", "job"]
    numeric = [*columns[:1], *columns[3:8]]
    more = len(history) - len(rows)
    note = f"The first {more:,} are left out." if more > 0 else ""
    table = Table(caption="Versions, the newest first", columns=columns, numeric=numeric, rows=rows, note=note)
    return Section(title="Versions", parts=[table])


def _fields(store: Store, said: Info | None) -> Section:
    rows = []
    stored = {} if said is None else {field.name: field for field in said.fields}
    for name, field in store.fields.items():
        cells = [
            Cell(shown(name, 120)),
            Cell(str(field.dtype)),
            Cell(f"[{', '.join(map(str, field.shape))}]" if field.shape else "–"),
        ]
        if (found := stored.get(name)) is not None:
            cells += [
                Cell(found.codec),
                Cell(count(found.chunk_timesteps), found.chunk_timesteps),
                Cell(format_bytes(found.bytes), found.bytes),
                Cell(format_bytes(found.decoded_bytes), found.decoded_bytes),
                Cell(f"{number(found.ratio, 3)} ×", found.ratio),
            ]
        rows.append(Row(cells))
    columns, numeric = ["field", "dtype", "step shape"], []
    parts: list[Part] = []
    if said is not None:
        numeric = ["chunk (timesteps)", "stored", "in memory", "times smaller"]
        columns += ["codec", *numeric]
        full = said.timesteps / (said.shards * said.shard_timesteps) if said.shards else 0.0
        parts.append(
            Facts(
                rows=[
                    ("backend", f"{said.backend}, format {said.format_version}"),
                    ("shards", f"{said.shards:,} of up to {said.shard_timesteps:,} timesteps"),
                    ("shards filled to", share(full)),
                    ("stored, in memory", f"{format_bytes(said.bytes)}, {format_bytes(said.decoded_bytes)}"),
                    ("tables", format_bytes(said.table_bytes)),
                    ("scattered sequences", count(said.scattered)),
                    ("fingerprint", said.fingerprint[:16]),
                ]
            )
        )
    else:
        parts.append(Facts(rows=[("backend", store.backend), ("fingerprint", store.fingerprint[:16])]))
    parts.append(Table(caption="Fields", columns=columns, numeric=numeric, rows=rows))
    return Section(title="Fields and storage", parts=parts)


def _lengths(store: Store) -> Section:
    lengths = store.lengths
    if not len(lengths):
        return Section(title="Lengths", parts=[Note("There are no sequences.")])
    parts: list[Part] = []
    least, most = int(lengths.min()), int(lengths.max())
    held = lengths[lengths > 0]
    if least == most:
        parts.append(Note(f"Each of {plural(len(lengths), 'sequence')} has {plural(most, 'timestep')}."))
    else:
        middle = number(float(np.median(lengths)))
        parts.append(
            Chart(
                title="How long sequences are",
                summary=f"From {least:,} to {most:,} timesteps, half of them up to {middle}.",
                views=lengths_views(held, "sequences"),
                caption=f"{plural(len(lengths) - len(held), 'sequence')} without any timestep left out."
                if len(held) < len(lengths)
                else "",
            )
        )
        parts.append(lengths_table(lengths, "Quantiles of the lengths"))
    few = min(_MOST_SEQUENCES, len(lengths))
    longest = np.argpartition(lengths, len(lengths) - few)[-few:]
    longest = longest[np.argsort(-lengths[longest], kind="stable")]
    rows = [
        Row([Cell(shown(store.id_of(index), 120)), Cell(count(int(lengths[index])), int(lengths[index]))])
        for index in longest.tolist()
    ]
    caption = "The longest sequences" if len(lengths) > few else "The sequences"
    parts.append(Table(caption=caption, columns=["id", "timesteps"], numeric=["timesteps"], rows=rows))
    return Section(title="Lengths", parts=parts)


def _values(store: Store) -> list[Section]:
    title = "Values"
    try:
        statistics = store.statistics
    except StreamseqError as error:
        return [Section(title=title, parts=[Note(str(error), warning=True)])]
    if not statistics:
        kept = "Statistics are not kept with this version"
        return [Section(title=title, parts=[Note(f"{kept}: streamseq info STORE --compute finds and keeps them.")])]
    parts: list[Part] = [_values_table(statistics)]
    counted = [(name, each) for name, each in statistics.items() if each.counted]
    for name, each in counted[:_MOST_PICTURES]:
        if (chart := _values_chart(name, each)) is not None:
            parts.append(chart)
    if len(counted) > _MOST_PICTURES:
        parts.append(Note(f"{len(counted) - _MOST_PICTURES:,} more fields are not drawn."))
    return [Section(title=title, parts=parts)]


def _places(shape: tuple[int, ...]) -> list[str]:
    """The name of each channel, at most so many as are shown."""
    if not shape:
        return [""]
    first = range(min(_MOST_CHANNELS, math.prod(shape)))
    return [str([int(axis) for axis in np.unravel_index(channel, shape)]) for channel in first]


def _values_table(statistics: Mapping[str, Statistics]) -> Table:
    columns = ["field", "count", "missing", "infinite", "min", "25%", "median", "75%", "max", "mean", "std"]
    rows, left_out = [], 0
    for name, each in statistics.items():
        found = figures(each)
        left_out += max(0, len(found["count"]) - _MOST_CHANNELS)
        for channel, place in enumerate(_places(each.field.shape)):
            numbers = [found[column][channel] if column in found else None for column in columns[1:]]
            rows.append(
                Row(
                    [
                        Cell(shown(name, 80) + place),
                        *(Cell(number(value), None if value is None else float(value)) for value in numbers),
                    ]
                )
            )
    note = f"{left_out:,} more channels are not shown." if left_out else ""
    return Table(caption="Statistics of the values", columns=columns, numeric=columns[1:], rows=rows, note=note)


def _values_chart(name: str, statistics: Statistics) -> Chart | None:
    views, left_out = [], 0.0
    places = _places(statistics.field.shape)
    for channel, place in enumerate(places[:_MOST_VIEWS]):
        # One value alone is told by the table.
        one = statistics.min.reshape(-1)[channel] == statistics.max.reshape(-1)[channel]
        if not one and (found := values_view(statistics, channel, place)) is not None:
            views.append(found[0])
            left_out = max(left_out, found[1])
    if not views:
        return None
    said = []
    channels = math.prod(statistics.field.shape)
    if channels > _MOST_VIEWS:
        said.append(f"The first {_MOST_VIEWS} of {channels:,} channels.")
    if left_out > 1e-9:
        said.append(f"Up to {share(left_out)} of the values lie beside the picture, far from the others.")
    low, high = float(statistics.min.min()), float(statistics.max.max())
    title = f"Values of {shown(name, 80)}"
    return Chart(title=title, summary=f"They lie between {number(low)} and {number(high)}.", views=views,
                 caption=" ".join(said), height=240)  # fmt: skip


def _boundaries(store: Store) -> list[Section]:
    names = store.boundary_names
    if not names:
        return []
    rows, notes = [], []
    views: list[View] = []
    for name in names:
        try:
            found = store.boundaries(name)
        except StreamseqError as error:
            notes.append(Note(str(error), warning=True))
            continue
        between = distances(found)
        middle = float(np.median(between)) if len(between) else None
        breaks = int(found.boundaries.breaks.sum())
        sequences = len(found.boundaries.sequence)
        rows.append(
            Row(
                [
                    Cell(shown(name, 80)),
                    Cell(count(len(found)), len(found)),
                    Cell(count(breaks), breaks),
                    Cell(count(sequences), sequences),
                    Cell(number(middle), middle),
                    Cell("yes" if found.whole else f"up to version {found.version}"),
                    Cell(shown("; ".join(found.rules), 300)),
                ]
            )
        )
        if len(between) and between.min() < between.max():
            between = between[between > 0]
            views.append(replace(lengths_views(between, "parts")[0], label=shown(name, 30)))
    columns = ["name", "boundaries", "breaks", "sequences", "median part", "all covered", "found by"]
    parts: list[Part] = [*notes]
    if rows:
        table = Table(caption="Stored boundaries", columns=columns, numeric=columns[1:5], rows=rows)
        parts.insert(0, table)
    if views:
        parts.append(
            Chart(
                title="Timesteps between boundaries",
                summary="Parts of sequences from one boundary, or the start, to the next one, or the end.",
                views=views,
                caption="From one boundary, or the start of a sequence, to the next one, or its end; sequences without "
                f"any are left out. At most {_MOST_BOUNDARIES:,} boundaries of a name are looked at.",
                height=260,
            )
        )
    return [Section(title="Boundaries", parts=parts)]


def distances(found: StoredBoundaries) -> NDArray[np.int64]:
    """The timesteps of each part between boundaries, of sequences that have any, int64 [P].

    Args:
        found: Of many, the first ones are looked at, and at least those of one sequence.
    """
    held = found.boundaries
    sequences = int(np.searchsorted(held.first, _MOST_BOUNDARIES, "right")) - 1
    sequences = max(min(1, len(held.sequence)), min(sequences, len(held.sequence)))
    first = held.first[: sequences + 1]
    total = int(first[-1]) if len(first) else 0
    if not total:
        return np.empty(0, np.int64)
    position = held.position[:total].astype(np.int64)
    ends = found.lengths[held.sequence[:sequences]]
    # Each sequence's own positions, and behind them its end.
    points = np.insert(position, first[1:], ends)
    begins = first[:-1] + np.arange(sequences)
    before = np.concatenate([[0], points[:-1]])
    before[begins] = 0
    distances: NDArray[np.int64] = points - before
    return distances
