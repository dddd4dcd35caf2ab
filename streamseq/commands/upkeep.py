"""The commands that look after a store: they read options, call the library and print."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import click

_NOT_WELL = 1
# What the log of a store says did it.
_COMPACT, _REPAIR, _INFO = "streamseq compact", "streamseq repair", "streamseq info"
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _age(value: str) -> timedelta:
    """A length of time such as 12h."""
    matched = _AGE.fullmatch("0s" if value == "0" else value)
    if matched is None:
        raise click.BadParameter(f"{value!r} is not an age such as 90s, 30m, 12h or 2d")
    try:
        return timedelta(**{_UNITS[matched[2]]: float(matched[1])})
    except OverflowError:
        raise click.BadParameter(f"{value!r} is too long an age") from None


@click.command()
@click.argument("store")
@click.option("--version", type=click.IntRange(min=1), help="The version to check.  [default: the newest]")
@click.option("--all-versions", is_flag=True, help="Check all versions; what several of them share is read once.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that read.  [default: one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def verify(
    store: str, version: int | None, all_versions: bool, workers: int | None, as_json: bool, quiet: bool
) -> None:
    """Read all of STORE and say what is not as it was written: which shard, field and chunk, and what it hits.

    Exits 1 where something is not well. Leftovers of writers that died are told, and harm nothing.
    """
    from streamseq.etl.progress import Progress
    from streamseq.storage.upkeep.verify import verify as check

    with Progress("verify") as progress:
        report = check(store, version, all_versions=all_versions, workers=workers, progress=None if quiet else progress)
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))
    if not report.ok:
        click.get_current_context().exit(_NOT_WELL)


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print the versions as one line of JSON.")
def log(store: str, as_json: bool) -> None:
    """Say how the versions of STORE came to be: when, by which job, and what each added."""
    from streamseq.storage.upkeep.history import log as read

    entries = read(store)
    if as_json:
        click.echo(json.dumps({"store": store, "versions": [entry.as_dict() for entry in entries]}))
    else:
        click.echo("\n".join(str(entry) for entry in entries))
    if any(entry.problem for entry in entries):
        click.get_current_context().exit(_NOT_WELL)


@click.command()
@click.argument("store")
@click.option("--version", type=click.IntRange(min=1), help="The version to look at.  [default: the newest]")
@click.option("--compute", is_flag=True, help="Compute statistics where none are kept; a new version keeps them.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def info(store: str, version: int | None, compute: bool, as_json: bool, quiet: bool) -> None:
    """Say what STORE holds and how: fields and their values, lengths, backend, codecs, versions, shards, bytes."""
    from streamseq.storage.upkeep.summary import info as read

    if compute:
        from streamseq.etl.progress import Progress
        from streamseq.storage.statistics.describe import describe

        if version is not None:
            raise click.UsageError("statistics are computed of the newest version: use --compute or --version")
        with Progress("info", "timestep") as progress:
            describe(store, job=_INFO, progress=None if quiet else progress)
    found = read(store, version)
    click.echo(json.dumps(found.as_dict()) if as_json else str(found))


@click.command()
@click.argument("store")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--older-than",
    type=_age,
    default="1d",
    show_default=True,
    metavar="AGE",
    help="How long a writer on another machine counts as alive without a sign of life: 90s, 30m, 12h, 2d.",
)
@click.option("--jobs", is_flag=True, help="Also what `streamseq ingest` would not do again when it is run again.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
def clean(store: str, dry_run: bool, older_than: timedelta, jobs: bool, as_json: bool) -> None:
    """Remove what writers that died left in STORE; never what a version names, never what a live writer has."""
    from streamseq.storage.upkeep.leftovers import clean as remove

    report = remove(store, dry_run=dry_run, older_than=older_than, jobs=jobs)
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def compact(store: str, as_json: bool, quiet: bool) -> None:
    """Write the newest version of STORE again, small appends as full shards, as a new version.

    Contents stay the same, and so do older versions. Where there is nothing to gain no version is made.
    """
    from streamseq.etl.progress import Progress
    from streamseq.storage.upkeep.compact import compact as rewrite

    with Progress("compact", "timestep") as progress:
        report = rewrite(store, job=_COMPACT, progress=None if quiet else progress)
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))


@click.command()
@click.argument("store")
@click.option("--dry-run", is_flag=True, help="Only say what would be left out.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that verify.  [default: one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def repair(store: str, dry_run: bool, workers: int | None, as_json: bool, quiet: bool) -> None:
    """Make a new version of STORE without the sequences that cannot be read any more, and say which they are.

    Exits 1 where the newest version is not well afterwards, so also where --dry-run finds something.
    """
    from streamseq.etl.progress import Progress
    from streamseq.storage.upkeep.repair import repair as mend

    with Progress("verify") as progress:
        report = mend(store, dry_run=dry_run, job=_REPAIR, workers=workers, progress=None if quiet else progress)
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))
    if not report.ok:
        click.get_current_context().exit(_NOT_WELL)


COMMANDS = (verify, info, log, clean, compact, repair)
