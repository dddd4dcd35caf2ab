"""The commands. They only read options, call the library and print; what they need is imported when they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import click

from streamseq._version import __version__
from streamseq.core.errors import StreamseqError

_NAME = "streamseq"
_NOT_WELL, _WRONG_USE, _INTERRUPTED = 1, 2, 130


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 for success, 1 for bad data or a bad store, 2 for wrong use, 130 for Ctrl-C.

    What goes wrong is one line on standard error. With `STREAMSEQ_TRACEBACK=1` in the environment it is a traceback.

    Args:
        args: The command line after the program's name; None: that of this process.
    """
    try:
        status = commands.main(args=args, prog_name=_NAME, standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", _INTERRUPTED)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else _NAME
        _fail(f"{error.format_message()} (see {path} --help)", _WRONG_USE)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (ValueError, TypeError) as error:
        _fail(str(error), _WRONG_USE)
    except (StreamseqError, OSError) as error:
        _fail(str(error), _NOT_WELL)
    except KeyError as error:
        _fail(str(error.args[0]) if error.args else "there is no such name", _NOT_WELL)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    """Say what went wrong and exit; called while the exception is being handled."""
    if os.environ.get("STREAMSEQ_TRACEBACK", "0") not in ("", "0"):
        raise
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(status)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name=_NAME, message="%(prog)s %(version)s")
def commands() -> None:
    """Train sequence models on sequences that do not fit in memory.

    Every command takes --json, exits 0 on success, 1 when the data or the store is not well and 2 on wrong use.
    """


class _Pipelines(click.Group):
    """The pipelines that are installed, streamseq's own and others, by their entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({point.name for point in _pipelines()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        point = next((point for point in _pipelines() if point.name == cmd_name), None)
        return None if point is None else _load(point)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            ctx.fail(f"there is no kind of source {args[0]!r}, there are: {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def _pipelines() -> list[EntryPoint]:
    return list(entry_points(group="streamseq.pipelines"))


def _load(point: EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:  # whatever another package raises, the pipelines beside it still work
        return _broken(point, f"{type(error).__name__}: {error}")
    if not isinstance(command, click.Command):
        return _broken(point, f"{point.value} is a {type(command).__name__}, not a click command")
    return command


def _broken(point: EntryPoint, reason: str) -> click.Command:
    def complain() -> None:
        raise click.ClickException(f"the pipeline {point.name!r} cannot be loaded, {reason}")

    return click.Command(
        point.name,
        callback=complain,
        help=f"(cannot be loaded, {reason})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@commands.group(cls=_Pipelines)
def ingest() -> None:
    """Write raw data into a new store, in parallel. KIND is the kind of source."""
