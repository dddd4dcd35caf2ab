"""What a report is made of: sections of facts, tables, charts and notes, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: A trace or a layout as plotly.js takes it. Colours are named as the style sheet names them, such as
#: "var(--series-1)", so that they follow the reader's colour scheme.
Plot = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and what is said of each.

    Args:
        rows: Name and text.
        large: Whether they are the key figures of a page.
    """

    rows: Sequence[tuple[str, str]]
    large: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A place in a table.

    Args:
        text: What is shown.
        value: What it is sorted by; None: by its text, and where the column is of numbers behind all of them.
    """

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Args:
        cells: One for each column.
        mark: "best", "dim" or nothing.
    """

    cells: Sequence[Cell]
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that its reader can sort by any column.

    Args:
        caption: What it is of.
        columns: Their names.
        numeric: The names of those that are of numbers.
        rows: Its rows.
        note: What is to be said below; empty: nothing.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    numeric: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to look at a chart.

    Args:
        label: Its name, where there are several.
        traces, layout: As plotly.js takes them.
    """

    label: str
    traces: Sequence[Plot]
    layout: Plot


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture that its reader can look into.

    Args:
        title: What it is of.
        summary: What it shows, in a sentence, for those who do not see it.
        views: At least one; of several the reader chooses one.
        caption: What is to be said below; empty: nothing.
        height: In pixels.
    """

    title: str
    summary: str
    views: Sequence[View]
    caption: str = ""
    height: int = 320


@dataclass(frozen=True, slots=True)
class Note:
    """A remark.

    Args:
        text: What it says.
        warning: Whether something is not as it should be.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A command, to be copied.

    Args:
        caption: What it does.
        text: The command.
    """

    caption: str
    text: str


Part = Facts | Table | Chart | Note | Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page with a heading.

    Args:
        title: The heading.
        parts: What is in it, from top to bottom.
        lead: What is to be said first; empty: nothing.
    """

    title: str
    parts: Sequence[Part]
    lead: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report.

    Args:
        kind: "store", "run", "search" or "advice".
        title: The name of what it is of.
        place: Where that lies.
        facts: The key figures.
        sections: The rest.
    """

    kind: str
    title: str
    place: str
    facts: Facts
    sections: Sequence[Section]
