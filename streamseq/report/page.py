"""A page as one HTML file: nothing is fetched when it is read, and what it shows is never taken for script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from string import Template
from typing import Any

from streamseq._version import __version__
from streamseq.report.markup import Html, element, join
from streamseq.report.parts import Chart, Code, Facts, Page, Part, Row, Section, Table

# Of a number in a chart: more cannot be seen.
_DIGITS = 6
# A table of so many columns is no wider than it has to be.
_FEW = 3
# From so many characters on a text may have several lines.
_LONG = 40


def plotly_js() -> str:
    """The script that draws charts.

    Raises:
        ImportError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("a report needs plotly: pip install streamseq[report]") from error
    script: str = get_plotlyjs()
    return script


def page_html(page: Page, plotly: str) -> str:
    """A page as HTML.

    Args:
        page: What it shows.
        plotly: From `plotly_js`.
    """
    asset = files("streamseq.report")
    charts: list[Any] = []
    body = join(*(_section(place, section, charts) for place, section in enumerate(page.sections)))
    # Their content decides whether a browser runs them, so that nothing else in the page can be a script.
    scripts = [_inert(plotly), _inert(asset.joinpath("page.js").read_text(encoding="utf-8"))]
    return Template(asset.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=join(f"{page.title}: {page.kind}"),
        kind=join(page.kind),
        name=join(page.title),
        place=join(page.place),
        policy=" ".join(_hash(script) for script in scripts),
        style=asset.joinpath("page.css").read_text(encoding="utf-8"),
        facts=_facts(page.facts),
        contents=join(*(_link(place, section) for place, section in enumerate(page.sections))),
        body=body,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        charts=_embedded(charts),
        plotly=scripts[0],
        script=scripts[1],
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _inert(script: str) -> str:
    """A script that does not end the element that it stands in."""
    return script.replace("\r\n", "\n").replace("</script", r"<\/script").replace("<!--", r"\x3c!--")


def _embedded(value: Any) -> str:
    """JSON that can stand in a script element."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode(errors="backslashreplace").decode()


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is not finite is null."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _link(place: int, section: Section) -> Html:
    return element("li", element("a", section.title, href=f"#section-{place}"))


def _section(place: int, section: Section, charts: list[Any]) -> Html:
    name = f"section-{place}"
    return element(
        "section",
        element("h2", section.title, id=name),
        element("p", section.lead, class_="lead") if section.lead else None,
        *(_part(part, charts) for part in section.parts),
        aria_labelledby=name,
    )


def _part(part: Part, charts: list[Any]) -> Html:
    if isinstance(part, Facts):
        return _facts(part)
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Chart):
        return _chart(part, charts)
    if isinstance(part, Code):
        return element(
            "figure",
            element("figcaption", part.caption),
            element("pre", element("code", join(*_lines(part.text)))),
            class_="code",
        )
    return element("p", part.text, class_="note warning" if part.warning else "note")


def _lines(text: str) -> Sequence[str]:
    # The ends of lines are no unseen characters.
    return [each for line in text.split("\n") for each in (line, Html("\n"))][:-1]


def _facts(facts: Facts) -> Html:
    rows = (element("div", element("dt", name), element("dd", text)) for name, text in facts.rows)
    return element("dl", *rows, class_="key" if facts.large else "facts")


def _table(table: Table) -> Html:
    numeric = [name in table.numeric for name in table.columns]
    head = (
        element("th", element("button", name, type="button"), scope="col", class_="number" if is_number else None)
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    body = (_row(row, numeric) for row in table.rows)
    inner = element(
        "table",
        element("caption", element("span", table.caption)),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    few = " few" if len(table.columns) <= _FEW else ""
    box = element("div", inner, class_=f"scroll{few}", tabindex=0, role="region", aria_label=table.caption)
    return join(box, element("p", table.note, class_="under") if table.note else None)


def _row(row: Row, numeric: Sequence[bool]) -> Html:
    cells = []
    for place, (cell, is_number) in enumerate(zip(row.cells, numeric, strict=True)):
        value = None if cell.value is None or not math.isfinite(cell.value) else repr(float(cell.value))
        kind = "number" if is_number else "long" if len(cell.text) > _LONG else None
        options = {"class_": kind, "data_value": value}
        cells.append(
            element("th", cell.text, scope="row", **options) if not place else element("td", cell.text, **options)
        )
    return element("tr", *cells, class_=row.mark or None)


def _chart(chart: Chart, charts: list[Any]) -> Html:
    name = f"chart-{len(charts)}"
    views = [{"label": view.label, "traces": view.traces, "layout": view.layout} for view in chart.views]
    charts.append({"id": name, "height": chart.height, "views": views})
    choice = None
    if len(views) > 1:
        choices = (
            element(
                "label",
                element("input", type="radio", name=f"{name}-view", value=place, checked=place == 0),
                element("span", view.label),
            )
            for place, view in enumerate(chart.views)
        )
        choice = element("fieldset", element("legend", f"View of {chart.title}", class_="unseen"), *choices)
    return element(
        "figure",
        element("h3", chart.title, id=f"{name}-title"),
        choice,
        element(
            "div", id=name, class_="chart", role="img", aria_label=f"{chart.title}. {chart.summary}",
            style=f"height: {chart.height}px",
        ),
        element("figcaption", chart.caption) if chart.caption else None,
        aria_labelledby=f"{name}-title",
    )  # fmt: skip
