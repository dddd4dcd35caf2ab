"""The report of a search: its trials, how their losses fell, what they depend on, what they cost, and the best one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamseq.core.sizes import format_bytes
from streamseq.report.advice import advice_section
from streamseq.report.figures import count, duration, number, plural, share
from streamseq.report.markup import shown
from streamseq.report.parts import Cell, Code, Facts, Note, Page, Part, Row, Section, Table
from streamseq.report.search_charts import costs_chart, curves_chart, heat_map
from streamseq.report.trials import SearchFiles, read_search
from streamseq.report.values import said
from streamseq.training.settings import TrainingSettings

if TYPE_CHECKING:
    from streamseq.search.result import Trial

# Of trials: the rest is told by their number.
_MOST_ROWS = 1_000
# Ended trials that are needed before it is said what the loss depends on.
_FEW = 6
# Settings of a candidate that its budget decides, and that a run of all the data has its own for.
_OF_THE_BUDGET = {
    "updates",
    "seconds",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "threads",
    "held_out_timesteps",
}


def search_page(folder: Path) -> Page:
    """What there is to say of a search, finished or not.

    Args:
        folder: Of the search.

    Raises:
        ImportError: optuna is not installed.
        StreamseqError: There is no search in it.
    """
    found = read_search(folder)
    best = found.complete[0] if found.complete else None
    sections = [
        _best(found, best, folder),
        _trials(found),
        _over_time(found),
        _dependence(found),
        _costs(found),
        *advice_section(folder),
        _settings(found),
    ]
    return Page(
        kind="search",
        title=folder.resolve().name,
        place=str(folder.resolve()),
        facts=Facts(rows=_key(found, best), large=True),
        sections=[section for section in sections if section.parts],
    )


def budget(found: SearchFiles) -> str:
    """What every candidate got, as text."""
    given = found.about.get("budget", {})
    parts = [
        f"{duration(value)} of training" if name == "seconds" else f"{number(value)} {name}"
        for name, value in given.items()
    ]
    return ", ".join(parts) or "its own"


def _key(found: SearchFiles, best: Trial | None) -> list[tuple[str, str]]:
    ended = [trial for trial in found.trials if trial.state != "running"]
    running = len(found.trials) - len(ended)
    left = running + found.waiting
    return [
        ("state", "finished" if not left else f"{plural(left, 'trial')} to go"),
        ("trials", count(len(found.trials))),
        ("best loss", number(best.loss if best else None)),
        ("pruned, failed", f"{len(found.of('pruned')):,}, {len(found.of('failed')):,}"),
        ("budget of each", budget(found)),
        ("time of all", duration(sum(trial.seconds for trial in found.trials))),
    ]


def name_of(trial: Trial, settings: Sequence[str]) -> str:
    """A trial as it is called."""
    values = ", ".join(f"{name}={said(name, trial.values[name])}" for name in settings if name in trial.values)
    return shown(f"trial {trial.number}: {values}" if values else f"trial {trial.number}", 120)


def _best(found: SearchFiles, best: Trial | None, folder: Path) -> Section:
    title = "The best candidate"
    if best is None:
        return Section(title=title, parts=[Note("No candidate has come to the end yet.", warning=True)])
    rows = [(shown(name, 60), said(name, value)) for name, value in best.values.items()]
    rows += [
        ("held-out loss", number(best.loss)),
        ("training time", duration(best.seconds)),
        ("most memory", "–" if best.peak_rss_bytes is None else format_bytes(best.peak_rss_bytes)),
    ]
    parts: list[Part] = [Facts(rows=rows)]
    others = found.complete[1:]
    if others and best.loss is not None and others[0].loss is not None:
        behind = others[0].loss - best.loss
        parts.append(Note(f"The second best, trial {others[0].number}, has a loss that is {number(behind, 2)} higher."))
    if (command := _command(found, best, folder)) is not None:
        parts.append(Code(caption="Train on all the data with these settings:", text=command))
    return Section(title=title, lead=f"Trial {best.number} has the lowest loss on what was held out.", parts=parts)


def _command(found: SearchFiles, best: Trial, folder: Path) -> str | None:
    """The command that trains with the settings of a candidate; None where a function trained it."""
    store = found.about.get("store")
    if store is None:
        return None
    usual = {field.name: field.default for field in fields(TrainingSettings)}
    values = {**found.about.get("settings", {}), **best.values}
    words = [
        "streamseq",
        "train",
        str(store),
        "--out",
        str(folder.resolve().with_name(f"{folder.resolve().name}-best")),
    ]
    for name, value in values.items():
        if name not in usual or name in _OF_THE_BUDGET or (value == usual[name] and name not in ("k1", "k2")):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{option}")
        elif value is not None or name in ("k1", "k2"):
            words += [f"--{option}", "n" if value is None else str(value)]
    return shlex.join(words)


def _trials(found: SearchFiles) -> Section:
    settings = found.settings
    order = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
    ranked = sorted(
        found.trials,
        key=lambda trial: (order[trial.state], trial.loss is None, trial.loss or 0.0, trial.number),
    )
    best = found.complete[0].number if found.complete else None
    rows = []
    for trial in ranked[:_MOST_ROWS]:
        values = [trial.values.get(name) for name in settings]
        peak, rate = trial.peak_rss_bytes, trial.timesteps_per_second
        rows.append(
            Row(
                [
                    Cell(str(trial.number), trial.number),
                    *(
                        Cell(said(name, value) if name in trial.values else "–", _place(value))
                        for name, value in zip(settings, values, strict=True)
                    ),
                    Cell(number(trial.loss, 5), trial.loss),
                    Cell(duration(trial.seconds), trial.seconds),
                    Cell("–" if peak is None else format_bytes(peak), peak),
                    Cell("–" if rate is None else count(round(rate)), rate),
                    Cell(shown(f"{trial.state}: {trial.reason}" if trial.reason else trial.state, 300)),
                ],
                mark="best" if trial.number == best else "" if trial.state == "complete" else "dim",
            )
        )
    if not rows:
        return Section(title="Trials", parts=[Note("No candidate was begun.")])
    costs = ["held-out loss", "time", "most memory", "timesteps/s"]
    names = [shown(name, 60) for name in settings]
    note = f"{len(ranked) - _MOST_ROWS:,} more are not shown." if len(ranked) > _MOST_ROWS else ""
    table = Table(
        caption=f"All trials, each with {budget(found)}; the loss of one that did not come to the end is its last",
        columns=["trial", *names, *costs, "state"],
        numeric=["trial", *(shown(name, 60) for name in settings if _is_numeric(found, name)), *costs],
        rows=rows,
        note=note,
    )
    return Section(title="Trials", parts=[table])


def _is_numeric(found: SearchFiles, name: str) -> bool:
    return all(value is None or isinstance(value, int | float) for value in found.values(name))


def _place(value: object) -> float | None:
    """Where a value comes in order: n, the whole sequence, is more than any number."""
    return float(value) if isinstance(value, int | float) else 1e300 if value is None else None


def _over_time(found: SearchFiles) -> Section:
    chart = curves_chart(found, lambda trial: name_of(trial, found.settings))
    return Section(title="Loss over time", parts=[chart] if chart is not None else [])


def _dependence(found: SearchFiles) -> Section:
    parts: list[Part] = []
    chart = heat_map(found)
    if chart is not None:
        parts.append(chart)
    rows = importance(found)
    if rows:
        parts.append(
            Table(
                caption="How much of the differences between losses each setting explains by itself",
                columns=["setting", "share of the variance"],
                numeric=["share of the variance"],
                rows=[Row([Cell(shown(name, 60)), Cell(share(value), value)]) for name, value in rows],
                note="The variance of the mean losses at each value, as a share of that of all losses. What settings "
                "do only together is in none of them. What is computed from another setting counts as it was chosen, "
                "such as 2*k1.",
            )
        )
    return Section(title="What the loss depends on", parts=parts)


def importance(found: SearchFiles) -> list[tuple[str, float]]:
    """The share of the losses' variance that the means over each value of a setting explain, the largest first.

    Ranges, whose values hardly ever come twice, are cut into quarters. Empty where there are too few trials.

    Args:
        found: The search.
    """
    done = [trial for trial in found.complete if trial.loss is not None]
    losses = np.array([trial.loss for trial in done], np.float64)
    if len(done) < _FEW or not losses.std():
        return []
    shares = []
    for name in found.settings:
        values = [trial.chosen.get(name) for trial in done]
        keys: list[object] = list(values)
        if len(set(values)) > len(done) // 2:
            if not all(isinstance(value, int | float) for value in values):
                continue
            numbers = np.array(values, np.float64)
            keys = list(np.searchsorted(np.quantile(numbers, [0.25, 0.5, 0.75]), numbers))
        groups = [losses[[key == each for key in keys]] for each in set(keys)]
        if len(groups) < 2:
            continue
        between = sum(len(group) * (group.mean() - losses.mean()) ** 2 for group in groups)
        shares.append((name, float(between / (len(losses) * losses.var()))))
    return sorted(shares, key=lambda each: -each[1])


def _costs(found: SearchFiles) -> Section:
    charts = [
        costs_chart(found, what, title, axis, lambda trial: name_of(trial, found.settings))
        for what, title, axis in (
            ("peak_rss_bytes", "Loss against peak memory", "peak memory of the process, MB"),
            ("seconds", "Loss against time", "time of the trial, s"),
        )
    ]
    lead = "On the line lie the candidates that no other one beats in both: the Pareto front."
    there = [chart for chart in charts if chart is not None]
    return Section(title="What it costs", parts=there, lead=lead if there else "")


def _settings(found: SearchFiles) -> Section:
    about = found.about
    rows = [
        (name, shown(about[name], 200))
        for name in ("store", "function", "sampler", "seed", "evaluations")
        if name in about
    ]
    rows.append(("budget of each candidate", budget(found)))
    rows.append(("pruning", "successive halving" if about.get("prune") else "none"))
    spaces = [(shown(name, 60), _values_text(values)) for name, values in about.get("space", {}).items()]
    same = [
        (shown(name, 60), said(name, value))
        for name, value in about.get("settings", {}).items()
        if name not in dict(about.get("space", {}))
    ]
    parts: list[Part] = [
        Facts(rows=rows),
        Table(
            caption="What was tried", columns=["setting", "values"], rows=[Row([Cell(a), Cell(b)]) for a, b in spaces]
        ),
    ]
    if same:
        parts.append(
            Table(caption="The same for every candidate", columns=["setting", "value"],
                  rows=[Row([Cell(name), Cell(value)]) for name, value in same])
        )  # fmt: skip
    return Section(title="How it was searched", parts=parts)


def _values_text(values: object) -> str:
    if not isinstance(values, list):
        return shown(values, 200)
    # A range is kept as its ends and whether it is logarithmic.
    if len(values) == 3 and isinstance(values[2], bool) and not isinstance(values[0], bool):
        return f"{number(values[0])} to {number(values[1])}" + (", logarithmic" if values[2] else "")
    return shown(", ".join("n" if value is None else str(value) for value in values), 200)
