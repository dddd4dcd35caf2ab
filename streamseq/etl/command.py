"""What the commands of all pipelines have in common: where to write, on what, and how to report it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from streamseq.etl.source import Source

if TYPE_CHECKING:
    from streamseq.etl.transforms_base import Transform

_OPTIONS = (
    click.option(
        "--to", "store", metavar="STORE", required=True, help="Where to write the store: a new or empty folder."
    ),
    click.option(
        "--backend",
        type=click.Choice(["zarr", "arrow"]),
        help="The format of the store.  [default: by the suffix of STORE, .zarr or .arrow]",
    ),
    click.option(
        "--transform",
        "transforms",
        metavar="TEXT",
        multiple=True,
        help="What is done to the data on the way, such as clip:x,0,1 or function:MODULE.NAME, a function of a dict of "
        "arrays. Can be repeated, in order.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Workers on this machine: threads, or processes where the source or a transform is Python that holds its "
        "lock.  [default: one a core]",
    ),
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
    click.option("--no-statistics", is_flag=True, help="Gather no statistics of the values on the way."),
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
        transforms: tuple[str, ...],
        workers: int | None,
        scheduler: str | None,
        chunk_bytes: int | None,
        shard_bytes: int | None,
        no_statistics: bool,
        as_json: bool,
        quiet: bool,
        **own: Any,
    ) -> None:
        parsed = _parse(transforms)
        source = make_source(**own)
        # Here, so that help and wrong use do not wait for these imports.
        from streamseq.etl.job import ingest
        from streamseq.etl.progress import Progress

        with Progress() as progress:
            try:
                report = ingest(
                    source,
                    store,
                    parsed,
                    workers=workers,
                    scheduler=scheduler,
                    backend=backend,
                    chunk_bytes=chunk_bytes,
                    shard_bytes=shard_bytes,
                    statistics=not no_statistics,
                    job=click.get_current_context().command_path,
                    progress=None if quiet else progress,
                    note=None if quiet else progress.note,
                )
            except KeyboardInterrupt:
                # Without settings nothing is known to be done already.
                goes_on = getattr(source, "settings", None) is not None
                then = ": the same command goes on with what is done" if goes_on else ""
                raise _InterruptedError(f"interrupted{then}") from None
        click.echo(report.to_json() if as_json else str(report))

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


class _InterruptedError(click.ClickException):
    """Ctrl-C, with how to go on."""

    exit_code = 130


def _parse(texts: Sequence[str]) -> list[Transform]:
    """The transforms that are named; functions of modules in the current folder are found, too.

    Raises:
        BadParameter: One of them is none.
    """
    if not texts:
        return []
    from streamseq.etl.transforms_text import parse_transform

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return [parse_transform(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--transform") from None
