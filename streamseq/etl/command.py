"""What the commands of all pipelines have in common: where to write, on what, and how to report it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from streamseq.etl.source import Source

_OPTIONS = (
    click.option(
        "--to", "store", metavar="STORE", required=True, help="Where to write the store: a new or empty folder."
    ),
    click.option(
        "--backend",
        type=click.Choice(["zarr", "arrow"]),
        help="The format of the store.  [default: by the suffix of STORE, .zarr or .arrow]",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Threads to work with.  [default: one a core]"),
    click.option(
        "--scheduler", metavar="ADDRESS", help="A Dask scheduler to work on instead, such as tcp://host:8786."
    ),
    click.option(
        "--chunk-bytes",
        type=click.IntRange(min=1),
        help="Bytes a chunk, decoded: the unit of compression.  [default: 1 MiB]",
    ),
    click.option(
        "--shard-bytes",
        type=click.IntRange(min=1),
        help="Bytes a shard, decoded: the unit of files.  [default: 64 MiB]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
)


def ingest_command(make_source: Callable[..., Source]) -> Callable[..., None]:
    """Make a function that returns a source the body of a click command that ingests it.

    It adds the options that every pipeline has. Name the click command in the entry points `streamseq.pipelines` of
    your package, and `streamseq ingest` finds it.

    Args:
        make_source: Takes the command's own arguments, returns the source.

    Example:
        >>> @click.command("countdowns")
        ... @click.argument("lengths", type=int, nargs=-1)
        ... @ingest_command
        ... def command(lengths):
        ...     "Ingest countdowns."
        ...     return Countdowns(lengths)
        >>> [option.name for option in command.params][:3]
        ['lengths', 'store', 'backend']
    """

    @functools.wraps(make_source)
    def run(
        store: str,
        backend: str | None,
        workers: int | None,
        scheduler: str | None,
        chunk_bytes: int | None,
        shard_bytes: int | None,
        as_json: bool,
        quiet: bool,
        **own: Any,
    ) -> None:
        # Here, so that help and wrong use do not wait for these imports.
        from streamseq.etl.job import ingest
        from streamseq.etl.progress import Progress

        source = make_source(**own)
        with Progress() as progress:
            report = ingest(
                source,
                store,
                workers=workers,
                scheduler=scheduler,
                backend=backend,
                chunk_bytes=chunk_bytes,
                shard_bytes=shard_bytes,
                job=click.get_current_context().command_path,
                progress=None if quiet else progress,
            )
        click.echo(report.to_json() if as_json else str(report))

    for option in reversed(_OPTIONS):
        run = option(run)
    return run
