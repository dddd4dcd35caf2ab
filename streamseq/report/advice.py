"""The part of a report about an advice: what was proposed and why, how far back data and gradients depend."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamseq.core.errors import StreamseqError
from streamseq.core.sizes import format_bytes
from streamseq.report.curves import line
from streamseq.report.figures import count, duration, number
from streamseq.report.markup import label, shown
from streamseq.report.parts import Cell, Chart, Code, Facts, Note, Page, Part, Row, Section, Table, View
from streamseq.report.spread import log_axis
from streamseq.report.values import said

#: The file in a folder that holds an advice.
ADVICE = "advice.json"
# A smaller bias or influence is none.
_LEAST = 1e-6


def advice_page(folder: Path) -> Page:
    """What there is to say of an advice alone.

    Args:
        folder: With `advice.json`.

    Raises:
        StreamseqError: It is none.
    """
    found = _read(folder)
    key = [(name, said(name, value)) for name, value in _proposed(found) if value is not None]
    key.append(("looked at", f"{number(found.get('timesteps'))} timesteps"))
    place = str(found.get("store", folder.resolve()))
    facts = Facts(rows=[(shown(name, 60), value) for name, value in key], large=True)
    return Page(kind="advice", title=folder.resolve().name, place=place, facts=facts, sections=[_section(found)])


def advice_section(folder: Path) -> list[Section]:
    """What was advised before a run or a search; nothing where nothing was.

    Args:
        folder: Of the run or the search.
    """
    if not (folder / ADVICE).is_file():
        return []
    try:
        return [_section(_read(folder))]
    except StreamseqError as error:
        return [Section(title="Advice", parts=[Note(str(error), warning=True)])]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / ADVICE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _section(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StreamseqError(
            f"{path} is no advice that this version reads ({type(error).__name__}): make it anew with streamseq advise"
        ) from error
    return dict(found)


def _proposed(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(str(each["name"]), each["value"]) for each in found["proposals"]]


def _section(found: Mapping[str, Any]) -> Section:
    rows = [
        Row(
            [
                Cell(shown(each["name"], 60)),
                Cell("usual" if each["value"] is None else said(str(each["name"]), each["value"])),
                Cell(shown(each["sure"], 20)),
                Cell(shown(each["why"], 1_000)),
            ]
        )
        for each in found["proposals"]
    ]
    proposals = Table(caption="What is proposed", columns=["setting", "value", "how sure", "why"], rows=rows)
    commands = found.get("commands", {})
    parts: list[Part] = [
        proposals,
        *(Code(caption=f"To {shown(name, 40)}:", text=str(text)) for name, text in commands.items()),
        *_dependences(found.get("dependences", [])),
        *_influence(found.get("influence"), found.get("truncations", [])),
        *_probe(found),
        *(Note(shown(each, 1_000)) for each in found.get("notes", [])),
    ]
    return Section(title="Advice", parts=parts)


def _probe(found: Mapping[str, Any]) -> list[Part]:
    rows: list[tuple[str, str]] = [("time it took", duration(found.get("seconds")))]
    if (probe := found.get("probe")) is not None:
        unit = shown(probe["unit"], 20)
        rows += [
            ("probe training", f"TBPTT({count(probe['k1'])}, {count(probe['k2'])}), {count(probe['updates'])} updates"),
            ("its loss on held-out data", f"{number(probe['loss'])} {unit}"),
            ("from the newest timestep alone", f"{number(probe['without'])} {unit}"),
        ]
    if (memory := found.get("memory")) is not None:
        rows.append(("memory of an update", format_bytes(memory["total"])))
    return [Facts(rows=rows)]


def _dependences(found: Sequence[Mapping[str, Any]]) -> list[Chart]:
    views, told = [], []
    for each in found:
        name, lags = shown(each["field"], 40), each["lags"]
        if not lags:
            continue
        traces = [
            line(label(each["kind"], 60), lags, each["values"], "series-1"),
            line("what chance makes of none", lags, each["chance"], "faint"),
        ]
        layout = {
            "xaxis": {"title": {"text": "lag, timesteps"}, **log_axis(lags, "~s")},
            "yaxis": {"title": {"text": label(each["kind"], 60)}, "rangemode": "tozero"},
            "showlegend": True,
        }
        views.append(View(label=name, traces=traces, layout=layout))
        told.append(f"{name}: seen up to lag {count(each['reach'])}, asks for a memory of {count(each['memory'])}.")
    if not views:
        return []
    text = " ".join(told)
    return [Chart(title="How far back the data depends", summary=text, views=views, caption=text, height=280)]


def _influence(found: Mapping[str, Any] | None, compared: Sequence[Mapping[str, Any]]) -> list[Part]:
    """The bias by depth, as a bound and as measured, and the influence of states that it comes from."""
    parts: list[Part] = []
    if found is not None and found["lags"]:
        x = {"title": {"text": "depth, timesteps"}, **log_axis(found["lags"], "~s")}
        bias = [line("bound δ", found["lags"], _positive(found["delta"]), "series-1")]
        if compared:
            depth, measured = [each["depth"] for each in compared], [each["relative"] for each in compared]
            bias.append(line("measured", depth, _positive(measured), "series-2", dots=True))
        influence = [line("influence φ", found["lags"], _positive(found["phi"]), "series-1")]
        y = {
            "title": {"text": "relative bias of the gradient"},
            **log_axis([each for trace in bias for each in trace["y"]]),
        }
        y2 = {"title": {"text": "norm of the gradient"}, **log_axis(influence[0]["y"])}
        views = [
            View(label="bias", traces=bias, layout={"xaxis": x, "yaxis": y, "showlegend": True}),
            View(label="influence", traces=influence, layout={"xaxis": x, "yaxis": y2}),
        ]
        fades = "The influence of a state fades with the lag" if found["decays"] else "No decay was seen"
        text = f"{fades}. The bias is what a gradient loses that looks back no further."
        title = "What truncation loses of the gradient"
        parts.append(Chart(title=title, summary=text, views=views, caption=text))
    if compared:
        names = {
            "k2": "k2",
            "depth": "depth",
            "phi": "φ",
            "delta": "bound δ",
            "relative": "measured",
            "cosine": "cosine",
        }
        rows = [Row([Cell(number(each[name]), each[name]) for name in names]) for each in compared]
        columns = list(names.values())
        parts.append(Table(caption="What some k2 would lose", columns=columns, numeric=columns, rows=rows))
    return parts


def _positive(values: Sequence[float | None]) -> list[float | None]:
    """What a logarithmic axis has a place for, and somebody a use."""
    return [value if value is not None and math.isfinite(value) and value > _LEAST else None for value in values]
