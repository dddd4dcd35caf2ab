"""The report of a training run: losses, speed, memory, settings, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamseq.core.errors import ResumeError, StreamseqError
from streamseq.core.sizes import format_bytes
from streamseq.report.advice import advice_section
from streamseq.report.curves import line
from streamseq.report.figures import count, duration, number, plural, share
from streamseq.report.lanes import stream_section
from streamseq.report.markup import label as chart_label
from streamseq.report.markup import shown
from streamseq.report.parts import Cell, Chart, Facts, Note, Page, Part, Plot, Row, Section, Table, View
from streamseq.report.spread import log_axis
from streamseq.report.values import said
from streamseq.storage.interface import Store
from streamseq.storage.store import open as open_store
from streamseq.training.build import build_streams
from streamseq.training.checkpoint import read_checkpoint
from streamseq.training.metrics import MetricsLog
from streamseq.training.metrics import Row as MetricsRow
from streamseq.training.plan import plan as plan_run
from streamseq.training.settings import TrainingSettings
from streamseq.training.trainer import CHECKPOINT, METRICS

# What is at the axis of a loss in some units.
_AXES = {"mse": "mean squared error, in variances"}
# Of what happened besides: a run that is stopped again and again.
_MOST_EVENTS = 100
_MOST_SHOWN = 5
# From this ratio on an axis is logarithmic that may be.
_WIDE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What the folder of a run holds.

    Args:
        settings: Of the run; empty where there is no checkpoint that can be read.
        totals: What it added up, as the checkpoint says; empty likewise.
        about: Where its store lies, how often it was resumed, and the most memory that it held, as far as it says.
        rows: Of the metrics, in their order.
        problem: Why the checkpoint cannot be read; empty where it can.
    """

    settings: Mapping[str, Any]
    totals: Mapping[str, Any]
    about: Mapping[str, Any]
    rows: Sequence[MetricsRow]
    problem: str

    def of(self, event: str) -> list[MetricsRow]:
        """The rows of one kind."""
        return [row for row in self.rows if row["event"] == event]


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a run that is finished, or was stopped, or goes on.

    Args:
        folder: With `metrics.jsonl`, `checkpoint.pt` or both.
    """
    rows = [
        row
        for row in MetricsLog(folder / METRICS).rows()
        if isinstance(row, dict) and isinstance(row.get("event"), str) and isinstance(row.get("update"), int)
    ]
    try:
        saved = read_checkpoint(folder / CHECKPOINT)
    except ResumeError as error:
        return RunFiles(settings={}, totals={}, about={}, rows=rows, problem=str(error))
    parts = saved["parts"]
    totals, about = parts.get("run", {}), parts.get("about", {})
    return RunFiles(settings=saved["settings"], totals=totals, about=about, rows=rows, problem="")


def run_page(folder: Path, store: Store | str | None) -> Page:
    """What there is to say of a run.

    Args:
        folder: Of the run.
        store: What it was trained on, or where that lies; None: it is not known, and neither is what needs it.
    """
    run = read_run(folder)
    sections = [
        _losses(run),
        _speed(run),
        *_memory(run, store),
        *advice_section(folder),
        _settings(run),
        *_events(run),
    ]
    return Page(
        kind="run",
        title=folder.resolve().name,
        place=str(folder.resolve()),
        facts=Facts(rows=_key(run), large=True),
        sections=[section for section in sections if section.parts],
    )


def _key(run: RunFiles) -> list[tuple[str, str]]:
    train, held = run.of("train"), run.of("evaluate")
    totals = run.totals
    updates = max([int(totals.get("updates", 0)), *(row["update"] for row in run.rows)])
    state = "finished" if totals.get("finished") else "not finished"
    timesteps = totals.get("timesteps") or (train[-1].get("timesteps") if train else None)
    seconds = totals.get("seconds") or (train[-1].get("seconds") if train else None)
    said = [("state", state), ("updates", count(updates)), ("timesteps", number(timesteps))]
    said += [("training loss", number(_figure(train[-1], "loss")) if train else "–")]
    if held:
        said.append(("held-out loss", number(_figure(held[-1], "loss"))))
    if timesteps and seconds:
        said.append(("timesteps a second", count(round(timesteps / seconds))))
    if totals.get("seconds"):
        said.append(("waiting for data", share(totals.get("waited", 0.0) / totals["seconds"])))
    said.append(("training time", duration(seconds)))
    return said


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    """A number of a row; None where it is none."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _curve(rows: Sequence[MetricsRow], name: str) -> tuple[list[float], list[float | None]]:
    return [row["update"] for row in rows], [_figure(row, name) for row in rows]


def _losses(run: RunFiles) -> Section:
    train, held = run.of("train"), run.of("evaluate")
    parts: list[Part] = []
    if run.problem:
        parts.append(Note(run.problem, warning=True))
    if not train and not held:
        parts.append(Note("Nothing was logged yet."))
        return Section(title="Loss", parts=parts)
    bad = [row["update"] for row in run.rows if row.get("loss") is not None and not _is_finite(_figure(row, "loss"))]
    if bad:
        first = ", ".join(map(count, bad[:_MOST_SHOWN])) + (", …" if len(bad) > _MOST_SHOWN else "")
        many = plural(len(bad), "loss is", "losses are")
        parts.append(Note(f"{many} not finite: after update {first}.", warning=True))
    unit = next((str(row["unit"]) for row in reversed(run.rows) if "unit" in row), "")
    views = [_loss_view(_AXES.get(unit, "nats a timestep" if _has(run, "bits") else "loss"), train, held, "loss")]
    if _has(run, "bits"):
        views.append(_loss_view(shown(unit or "bits a timestep", 40), train, held, "bits"))
    best = min((row for row in held if _is_finite(_figure(row, "loss"))), key=lambda row: row["loss"], default=None)
    known = [_figure(row, "loss") for row in train]
    ends = f"Training loss from {number(known[0])} to {number(known[-1])}. " if known else ""
    lowest = (
        "" if best is None else f"The lowest held-out loss is {number(best['loss'])}, after update {best['update']:,}."
    )
    parts.append(
        Chart(
            title="Loss over updates",
            summary=ends + lowest,
            views=views,
            caption=lowest,
            height=360,
        )
    )
    more = [
        _single(train, "learning_rate", "Learning rate"),
        _single(train, "gradient_norm", "Norm of the gradient, before clipping", log=True),
    ]
    return Section(title="Loss", parts=[*parts, *(chart for chart in more if chart is not None)])


def _has(run: RunFiles, name: str) -> bool:
    return any(_figure(row, name) is not None for row in run.rows)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _loss_view(label: str, train: Sequence[MetricsRow], held: Sequence[MetricsRow], name: str) -> View:
    traces: list[Plot] = []
    if train:
        traces.append(line("training", *_curve(train, name), "series-1", width=1.2))
    if held:
        traces.append(line("held out", *_curve(held, name), "series-2", width=2, dots=True))
    baselines = held[-1].get("baselines") if held else None
    if name == "loss" and isinstance(baselines, dict):
        ends = [min(row["update"] for row in [*train, *held]), max(row["update"] for row in [*train, *held])]
        for dash, (each, value) in zip(("dash", "dot"), baselines.items(), strict=False):
            flat = line(chart_label(each, 40), ends, [value, value], "series-3")
            flat["line"]["dash"] = dash
            traces.append(flat)
    return View(label=label, traces=traces, layout=_over_updates(label) | {"hovermode": "x unified"})


def _over_updates(title: str, log: Sequence[float] = ()) -> Plot:
    axis: Plot = {"title": {"text": title}}
    if log:
        axis |= log_axis(log)
    return {"xaxis": {"title": {"text": "updates"}, "tickformat": "~s"}, "yaxis": axis, "showlegend": True}


def _single(rows: Sequence[MetricsRow], name: str, title: str, *, log: bool = False) -> Chart | None:
    x, y = _curve(rows, name)
    there = [value for value in y if value is not None and math.isfinite(value)]
    if not there:
        return None
    layout = _over_updates("", there if log and max(there) > _WIDE * min(there) > 0 else ()) | {"showlegend": False}
    said = f"From {number(min(there))} to {number(max(there))}, at the end {number(there[-1])}."
    return Chart(
        title=title,
        summary=said,
        views=[View(label="", traces=[line(title, x, y, "series-1")], layout=layout)],
        caption=said,
        height=220,
    )


def _speed(run: RunFiles) -> Section:
    chart = _single(run.of("train"), "timesteps_per_second", "Timesteps a second")
    waiting = _single(run.of("train"), "data_wait_fraction", "Share of the time waiting for data")
    parts: list[Part] = []
    seconds = run.totals.get("seconds")
    if seconds:
        waited = run.totals.get("waited", 0.0)
        parts.append(
            Facts(
                rows=[
                    ("training time", duration(seconds)),
                    ("of that waiting for data", f"{duration(waited)}, {share(waited / seconds)}"),
                    ("threads", str(run.totals.get("threads", "–"))),
                    *([("resumed", plural(run.about["resumed"], "time"))] if "resumed" in run.about else []),
                ]
            )
        )
    if chart is not None:
        zero = dict(chart.views[0].layout)
        zero["yaxis"] = {**zero["yaxis"], "rangemode": "tozero", "tickformat": "~s"}
        view = View(label="", traces=chart.views[0].traces, layout=zero)
        parts.append(
            Chart(title=chart.title, summary=chart.summary, views=[view], caption=chart.caption, height=chart.height)
        )
    if waiting is not None:
        parts.append(waiting)
    return Section(title="Speed", parts=parts)


def _memory(run: RunFiles, store: Store | str | None) -> list[Section]:
    """Memory as predicted and measured, and the lanes: what needs the store."""
    parts: list[Part] = []
    measured = run.about.get("peak_rss_bytes")
    rows: list[tuple[str, str]] = []
    more: list[Section] = []
    store = store if store is not None else run.about.get("store")
    if store is None:
        parts.append(Note("The store is not named, so that nothing is predicted: streamseq report RUN --store STORE."))
    elif run.settings:
        try:
            settings = TrainingSettings.from_saved({**run.settings, "device": "cpu"})
            opened = _same_store(run, store)
            found = plan_run(opened, settings)
            more.append(stream_section(build_streams(opened, settings).train))
        except (StreamseqError, ValueError, TypeError, OSError) as error:
            parts.append(Note(f"Memory is not predicted: {error}", warning=True))
        else:
            memory = found.memory
            said = {name.replace("_", " "): value for name, value in memory.as_dict().items() if name in _MEMORY}
            rows += [("predicted: an update", format_bytes(memory.total))]
            rows += [(f"of it {name}", format_bytes(value)) for name, value in said.items()]
            rows += [("predicted: parameters and optimizer", format_bytes(found.model_bytes))]
    if measured is not None:
        rows.append(("measured: most memory of the process", format_bytes(float(measured))))
    if rows:
        parts.insert(0, Facts(rows=rows))
        if measured is not None:
            parts.append(Note("The process also holds Python, torch and what reading takes, about 300 MB together."))
    return [Section(title="Memory", parts=parts), *more]


_MEMORY = ("activations", "graph", "workspace", "boundary_states", "inputs")


def _same_store(run: RunFiles, store: Store | str) -> Store:
    """The version of a store that a run was trained on.

    Raises:
        StreamseqError: It is another store.
    """
    opened = store if isinstance(store, Store) else open_store(store, run.settings.get("store_version"))
    known = run.settings.get("store_fingerprint")
    if known is not None and opened.fingerprint != known:
        raise ResumeError(
            f"the run was on a store with fingerprint {str(known)[:16]}, {opened.uri} has {opened.fingerprint[:16]}: "
            "name the one that it was trained on"
        )
    return opened


def _settings(run: RunFiles) -> Section:
    """The settings of a run."""
    rows = [(shown(name, 60), said(name, value)) for name, value in run.settings.items()]
    return Section(title="Settings", parts=[Facts(rows=rows)] if rows else [])


def _events(run: RunFiles) -> list[Section]:
    """What was logged beside losses, such as stops and resumes."""
    others = [row for row in run.rows if row["event"] not in ("train", "evaluate")]
    if not others:
        return []
    rows = [
        Row(
            [
                Cell(count(row["update"]), row["update"]),
                Cell(shown(row["event"], 60)),
                Cell(
                    shown(", ".join(f"{name}: {value}" for name, value in row.items() if name not in _OWN), 300),
                ),
            ]
        )
        for row in others[-_MOST_EVENTS:]
    ]
    table = Table(caption="Stops, resumes and what else was logged", columns=["update", "what", "more"],
                  numeric=["update"], rows=rows)  # fmt: skip
    return [Section(title="What happened", parts=[table])]


_OWN = ("event", "update")
