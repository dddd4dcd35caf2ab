"""The commands about where windows end, and what streams look like: they read options, call the library and print."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import click

from streamseq.core import splits

# What the log of a store says did it.
_MARK = "streamseq mark"


def _parts(value: str, option: str, form: str, least: int) -> list[str]:
    """The parts of an option such as time:day."""
    parts = value.split(":", 1)
    if len(parts) < least or not all(parts):
        raise click.BadParameter(f"{value!r} is not of the form {form}", param_hint=option)
    return parts


def _number(text: str, option: str, form: str) -> float:
    try:
        return float(text) if not text.lstrip("+-").isdigit() else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number: it is {form}", param_hint=option) from None


@click.command()
@click.argument("store")
@click.argument("name")
@click.option(
    "--calendar", multiple=True, metavar="FIELD:PERIOD", help="Where a minute, hour, day, ... or year begins."
)
@click.option("--unit", type=click.Choice(splits.UNITS), default="s", show_default=True, help="What that field counts.")
@click.option("--timezone", metavar="NAME", help="Whose days these are, such as Europe/Vienna.  [default: UTC]")
@click.option("--gap", multiple=True, metavar="FIELD:LONGER_THAN", help="Where time jumps, a break.")
@click.option("--marker", multiple=True, metavar="FIELD[:VALUE]", help="Where a field has a value; else: is not 0.")
@click.option(
    "--after", is_flag=True, help="A window ends with what is marked by --marker, and does not begin with it."
)
@click.option("--change", multiple=True, metavar="FIELD", help="Where a field has another value than before.")
@click.option("--breaks", is_flag=True, help="The state begins anew at all of them, not at gaps alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def mark(
    store: str,
    name: str,
    calendar: tuple[str, ...],
    unit: str,
    timezone: str | None,
    gap: tuple[str, ...],
    marker: tuple[str, ...],
    after: bool,
    change: tuple[str, ...],
    breaks: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find boundaries in STORE, and store them beside its sequences as NAME, for ss.splits.Domain(NAME).

    Options for rules can be repeated and mixed; the boundaries of all count. Lines of text are --marker x:10 --after.
    """
    rules: list[splits.Rule] = []
    for value in calendar:
        field, period = _parts(value, "--calendar", "FIELD:PERIOD", 2)
        rules.append(splits.Calendar(field, every=period, unit=unit, timezone=timezone, reset=breaks))
    for value in gap:
        field, longer_than = _parts(value, "--gap", "FIELD:LONGER_THAN", 2)
        rules.append(splits.Gap(field, longer_than=_number(longer_than, "--gap", "FIELD:LONGER_THAN")))
    for value in marker:
        field, *wanted = _parts(value, "--marker", "FIELD[:VALUE]", 1)
        number = _number(wanted[0], "--marker", "FIELD[:VALUE]") if wanted else None
        rules.append(splits.Marker(field, number, after=after, reset=breaks))
    rules += [splits.Change(field, reset=breaks) for field in change]
    if not rules:
        raise click.UsageError("boundaries are found by a rule: pass --calendar, --gap, --marker or --change")
    from streamseq.etl.progress import Progress
    from streamseq.storage.boundaries.mark import mark as find
    from streamseq.storage.store import open as open_store

    with Progress("mark", "timestep") as progress:
        version = find(store, name, rules, job=_MARK, progress=None if quiet else progress)
    found = open_store(store, version).boundaries(name)
    breaks_found = int(found.boundaries.breaks.sum())
    if as_json:
        figures = {"boundaries": len(found), "breaks": breaks_found, "sequences": len(found.boundaries.sequence)}
        click.echo(json.dumps({"store": store, "name": name, "version": version, **figures}))
    else:
        click.echo(
            f"{store} version {version} has boundaries {name!r}: {len(found):,} in {len(found.boundaries.sequence):,} "
            f"sequences, {breaks_found:,} of them breaks"
        )


def _more(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("store")
@click.option("--out", metavar="FILE.png", required=True, help="The picture.")
@_more(
    click.option("--lanes", type=click.IntRange(min=1), default=8, show_default=True, help="Sequences side by side."),
    click.option("--window", type=click.IntRange(min=1), help="Timesteps of a window.  [default: 256]"),
    click.option("--boundaries", multiple=True, metavar="NAME", help="Stored boundaries at which windows end."),
    click.option("--as-is", is_flag=True, help="Each sequence is one window."),
    click.option("--layout", type=click.Choice(["sequences", "even"]), default="sequences", show_default=True),
    click.option("--tail", type=click.Choice(["pad", "drop", "pack"]), default="pad", show_default=True),
    click.option("--shuffle", is_flag=True, help="Take the sequences in a random order."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffling."),
    click.option("--epoch", type=click.IntRange(min=0), default=0, show_default=True),
)
@click.option(
    "--from-window", "first", type=click.IntRange(min=0), default=0, show_default=True, help="The first drawn."
)
@click.option("--windows", type=click.IntRange(1, 256), help="How many are drawn.  [default: up to 16]")
@click.option("--field", metavar="NAME", help="Whose values are drawn.  [default: the first field of floats, or any]")
@click.option("--lane", type=click.IntRange(min=0), default=0, show_default=True, help="In which lane.")
@click.option("--version", type=click.IntRange(min=1), help="Of the store.  [default: the newest]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one line of JSON.")
def preview(
    store: str,
    out: str,
    window: int | None,
    boundaries: tuple[str, ...],
    as_is: bool,
    first: int,
    windows: int | None,
    field: str | None,
    lane: int,
    version: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw what lanes and windows of a stream of STORE hold: sequences, boundaries, resets, padding."""
    if as_is and (boundaries or window is not None):
        raise click.UsageError("--as-is has windows of whole sequences: pass neither --window nor --boundaries with it")
    from streamseq.data.dataset import StreamDataset
    from streamseq.data.preview import preview as draw
    from streamseq.storage.store import open as open_store

    split: splits.Split = splits.AsIs() if as_is else splits.Naive()
    if boundaries:
        split = splits.Domain(list(boundaries))
    if not as_is and window is None:
        window = 256
    with warnings.catch_warnings():
        # The picture shows them.
        warnings.filterwarnings("ignore", "fewer sequences than lanes")
        stream = StreamDataset(open_store(store, version), window=window, split=split, **options)
    try:
        seen = draw(stream, out, first=first, windows=windows, field=field, lane=lane)
    except IndexError as error:
        raise click.UsageError(str(error)) from error
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps({"store": store, **seen.as_dict()}) if as_json else str(seen))


COMMANDS = (mark, preview)
