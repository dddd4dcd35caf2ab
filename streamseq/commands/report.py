"""The command that writes a report: it reads options, calls the library and prints."""

from __future__ import annotations

import contextlib
import json

import click


@click.command()
@click.argument("path")
@click.option(
    "--out", metavar="FILE.html", help="The report.  [default: PATH/report.html; of a store PATH.report.html beside it]"
)
@click.option("--store", metavar="STORE", help="What a run was trained on: its memory is predicted, its lanes drawn.")
@click.option("--lanes", type=click.IntRange(min=1), help="Of the schedule of a store.  [default: up to 32]")
@click.option("--window", type=click.IntRange(min=1), help="Timesteps of its windows.  [default: 256]")
@click.option("--version", type=click.IntRange(min=1), help="Of a store.  [default: the newest]")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one line of JSON.")
def report(
    path: str,
    out: str | None,
    store: str | None,
    lanes: int | None,
    window: int | None,
    version: int | None,
    as_json: bool,
) -> None:
    """Write what there is to see of PATH as one HTML file: a store, or the folder of a run or of a search.

    The file fetches nothing. Runs and searches need not be finished.
    """
    from streamseq.report.write import report as write

    try:
        made = write(path, out, store=store, lanes=lanes, window=window, version=version)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(made.as_dict()) if as_json else str(made))


def write_into(folder: str, *, quiet: bool = False) -> None:
    """Write the report of a search into its folder and say so on standard error; nothing where plotly is missing."""
    from streamseq.report.write import report as write

    with contextlib.suppress(ImportError):
        made = write(folder)
        if not quiet:
            click.echo(f"the report is {made.out}", err=True)


COMMANDS = (report,)
