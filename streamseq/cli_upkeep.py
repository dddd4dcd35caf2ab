"""The commands that look after a store: they read options, call the library and print."""

from __future__ import annotations

import json

import click

_NOT_WELL = 1


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
    from streamseq.storage.verify import verify as check

    with Progress("verify") as progress:
        report = check(store, version, all_versions=all_versions, workers=workers, progress=None if quiet else progress)
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))
    if not report.ok:
        click.get_current_context().exit(_NOT_WELL)


COMMANDS = (verify,)
