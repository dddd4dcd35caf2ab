"""The commands. They only read options, call the library and print; what they need is imported when they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from streamseq._version import __version__
from streamseq.commands import advise, domain, report, search, upkeep
from streamseq.core.errors import StreamseqError

if TYPE_CHECKING:
    from streamseq.training import Progress

_NAME = "streamseq"
_NOT_WELL, _WRONG_USE, _INTERRUPTED = 1, 2, 130
# In a log, of how far a run is.
_SECONDS_BETWEEN_LINES = 10


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
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(_WRONG_USE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else _NAME
        _fail(f"{error.format_message().removesuffix('.')} (see {path} --help)", _WRONG_USE)
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


for _command in (*advise.COMMANDS, *upkeep.COMMANDS, *domain.COMMANDS, *search.COMMANDS, *report.COMMANDS):
    commands.add_command(_command)


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
    """Write raw data into a new store, in parallel; each command is for one kind of source."""


def _timesteps(value: str) -> int | str:
    """A number of timesteps, or n for the whole sequence."""
    if value == "n":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number of timesteps nor n") from None


def _names(value: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in value.split(",")]


def _setting(
    name: str, kind: click.ParamType[Any] | Callable[[str], Any] | None, shown: str, help: str, **more: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option for one of `TrainingSettings`. It is None where it is not given: the trainer has the defaults."""
    return click.option(name, type=kind, help=f"{help}  [default: {shown}]", **more)


@commands.command()
@click.argument("store")
@click.option("--out", metavar="DIR", required=True, help="The folder of the run: checkpoint, metrics, curves.")
@click.option("--resume", is_flag=True, help="Go on with the run in DIR; options that are left out are as they were.")
@click.option(
    "--like",
    metavar="DIR",
    help="A search, whose best candidate's settings are taken, or a run; how long it went on is not. Options that are "
    "given come first.",
)
@_setting(
    "--k1", _timesteps, "128", "Timesteps from one update to the next; n: the whole sequence.", metavar="TIMESTEPS|n"
)
@_setting(
    "--k2",
    _timesteps,
    "256",
    "Timesteps that back-propagation reaches, at least k1; n: the whole sequence.",
    metavar="TIMESTEPS|n",
)
@_setting(
    "--split",
    str,
    "naive",
    "How sequences are cut into windows: naive, by length; as-is, not at all; domain:NAME, also at the boundaries of "
    "that name, which ingestion or streamseq mark has stored.",
    metavar="naive|as-is|domain:NAME",
)
@_setting("--lanes", int, "32", "Sequences side by side.")
@_setting("--window", int, "k1, or 256 where k1 is n", "Timesteps read at once.")
@_setting("--segment", int, "as ss.TBPTT has it", "Timesteps whose activations live at once.")
@_setting(
    "--memory", str, "none", 'A budget for an update, such as "500MB", that chooses the segment.', metavar="BYTES"
)
@_setting("--burn-in", int, "0", "Timesteps run before a lane that starts in the middle of a sequence.")
@_setting(
    "--task",
    click.Choice(["auto", "language", "forecast"]),
    "auto",
    "What is learnt: the next byte or token of a field, or numbers some timesteps ahead; auto: what STORE has.",
)
@_setting("--field", str, "x", "The field of a language model: one byte or token a timestep.")
@_setting("--inputs", _names, "all of floats", "The fields that a forecast is made from.", metavar="NAME,...")
@_setting("--targets", _names, "the inputs", "The fields that are forecast.", metavar="NAME,...")
@_setting("--horizon", int, "1", "How many timesteps ahead numbers are forecast.")
@_setting(
    "--layout",
    click.Choice(["sequences", "even"]),
    "even where there are fewer sequences than lanes and k1 and k2 are not n",
    "Whole sequences fill the lanes, or the data is cut into one equal run a lane.",
)
@_setting(
    "--shuffle/--no-shuffle",
    None,
    "shuffle",
    "Take the sequences in a random order, or in that of the store.",
    default=None,
)
@_setting("--held-out", float, "0.05", "The share of the sequences that is evaluated, not trained on.")
@_setting("--held-out-timesteps", int, "1048576", "How many timesteps of those are evaluated at most.")
@_setting("--seed", int, "0", "Of parameters, shuffling, the held-out sequences and dropout.")
@_setting(
    "--epochs",
    int,
    "1, or for a forecast as many as give 400 updates",
    "How often all sequences are seen, where neither --updates nor --seconds is given.",
)
@_setting("--updates", int, "as the epochs give", "How many updates are made.")
@_setting("--seconds", float, "any", "How long training takes at most, evaluations and checkpoints not counted.")
@_setting("--cell", click.Choice(["lstm", "gru"]), "lstm", "The kind of recurrent network.")
@_setting("--hidden", int, "256, or 64 for a forecast", "Its size.")
@_setting("--embedding", int, "64", "The size of the vector that stands for a byte or token.")
@_setting("--layers", int, "1", "Recurrent layers.")
@_setting("--dropout", float, "0.0", "The probability of dropout.")
@_setting("--learning-rate", float, "0.004", "Of Adam, at its highest.")
@_setting("--final-learning-rate", float, "0.05", "Where it falls to until the end, as a share of the highest.")
@_setting("--warmup", int, "100", "Updates over which it rises from 0.")
@_setting("--clip", float, "1.0", "The largest norm of the gradient; inf: any.")
@_setting("--threads", int, "probed", "Threads that compute.")
@_setting("--device", str, "cpu", "Where the model is, such as cuda.")
@_setting("--log-every", int, "20", "Updates from one line of metrics to the next.")
@_setting("--evaluate-every", int, "500", "Updates from one evaluation to the next.")
@_setting("--evaluate-seconds", float, "none", "Seconds of training from one evaluation to the next, instead.")
@_setting("--checkpoint-every", int, "500", "Updates from one checkpoint to the next.")
@click.option("--tensorboard", is_flag=True, help="Write curves for TensorBoard to DIR/tensorboard.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def train(store: str, out: str, resume: bool, like: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a model on STORE by TBPTT(k1, k2): of bytes or tokens, or one that forecasts numbers.

    Numbers are normalised by the statistics of STORE, and missing ones do not count.

    Ctrl-C ends the run with a checkpoint; the same command with --resume goes on.
    """
    from streamseq.training import ProgressBar, TrainingSettings, read_checkpoint, settings_like
    from streamseq.training import train as run
    from streamseq.training.progress import Reporter, Silent

    if resume and like is not None:
        raise click.UsageError("--resume takes the settings that the run has: leave --like out")

    tensorboard = options.pop("tensorboard")
    given: dict[str, Any] = {
        name: None if value == "n" else value for name, value in options.items() if value is not None
    }
    settings = None
    if not resume:
        settings = TrainingSettings(**given) if like is None else settings_like(like, **given)
    elif given:
        saved = read_checkpoint(os.path.join(out, "checkpoint.pt"))
        settings = replace(TrainingSettings.from_saved(saved["settings"]), **given)
    with ExitStack() as stack:
        reporter: Reporter = Silent() if quiet else _Lines()
        if sys.stderr.isatty() and not quiet:
            reporter = stack.enter_context(ProgressBar())
        if tensorboard:
            try:
                from streamseq.integrations.tensorboard import TensorBoardReporter
            except ImportError as error:
                raise click.ClickException(str(error)) from None
            board = TensorBoardReporter(os.path.join(out, "tensorboard"), also=reporter)
            result = run(store, out, settings, resume=resume, reporter=stack.enter_context(board))
            board.finish(result)
        else:
            result = run(store, out, settings, resume=resume, reporter=reporter)
    click.echo(json.dumps(result.as_dict()) if as_json else str(result))
    click.get_current_context().exit(result.exit_code)


@commands.command()
@click.argument("store")
@click.option("--checkpoint", metavar="FILE", required=True, help="Of a run of streamseq train: DIR/checkpoint.pt.")
@click.option("--to", "uri", metavar="STORE", required=True, help="Where to write the new store.")
@click.option(
    "--what",
    type=click.Choice(["nll", "entropy", "likeliest", "logits", "forecast", "error"]),
    multiple=True,
    help="Of the prediction of the next byte or token (nll: -ln of the probability of the one that comes, NaN at the "
    "last one), or of a forecast (in the unit of its field; error: less what came); each becomes a field. Can be "
    "repeated.  [default: nll or forecast]",
)
@click.option("--lanes", type=click.IntRange(min=1), default=32, show_default=True, help="Sequences side by side.")
@click.option("--window", type=click.IntRange(min=1), default=256, show_default=True, help="Timesteps read at once.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes; 0: this one.")
@click.option("--threads", type=click.IntRange(min=1), help="torch's threads in each process.  [default: probed]")
@click.option(
    "--backend",
    type=click.Choice(["zarr", "arrow"]),
    help="The format of the new store.  [default: by its suffix, .zarr or .arrow]",
)
@click.option("--restart", is_flag=True, help="Discard an unfinished prediction of any kind that lies there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def predict(
    store: str, checkpoint: str, uri: str, what: tuple[str, ...], as_json: bool, quiet: bool, **options: Any
) -> None:
    """Run a trained model over STORE, and write what it says at each timestep to a new store.

    The new store has the same sequences, timestep by timestep. After Ctrl-C or a kill the same command goes on.
    """
    from streamseq.etl.progress import Progress as Bar
    from streamseq.training.predict_checkpoint import predict_checkpoint

    with Bar("predict", "timestep") as progress:
        try:
            report = predict_checkpoint(
                store, checkpoint, uri, what=what or None, progress=None if quiet else progress, **options
            )
        except KeyboardInterrupt:
            raise _StoppedError("interrupted: the same command goes on with what is done") from None
    click.echo(json.dumps(report.as_dict()) if as_json else str(report))


@commands.command()
@click.argument("store")
@click.option("--lanes", type=int, default=32, show_default=True, help="Sequences side by side.")
@click.option("--window", type=int, default=256, show_default=True, help="Timesteps of a window.")
@click.option("--layout", type=click.Choice(["sequences", "even"]), default="sequences", show_default=True)
@click.option("--shuffle", is_flag=True, help="Take the sequences in a random order.")
@click.option("--memory", metavar="BYTES", help='A budget for windows and decoded chunks, such as "500MB".')
@click.option("--seconds", type=float, default=2.0, show_default=True, help="How long each of two passes may take.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one line of JSON.")
def bench(
    store: str, lanes: int, window: int, layout: str, shuffle: bool, memory: str | None, seconds: float, as_json: bool
) -> None:
    """Stream STORE and show how fast that is, beside how fast this machine copies and decodes."""
    from streamseq.data.bench import bench as measure
    from streamseq.data.dataset import StreamDataset
    from streamseq.storage.store import open as open_store

    opened = open_store(store)
    stream = StreamDataset(opened, lanes, window, layout=layout, shuffle=shuffle, memory=memory)
    result = measure(opened, stream, seconds)
    click.echo(json.dumps(result.as_dict()) if as_json else result.as_table())


@commands.command()
@click.argument("store")
@_setting("--k1", _timesteps, "128", "Timesteps from one update to the next; n: the whole sequence.", metavar="K|n")
@_setting("--k2", _timesteps, "256", "Timesteps that back-propagation reaches; n: the whole sequence.", metavar="K|n")
@_setting("--lanes", int, "32", "Sequences side by side.")
@_setting("--window", int, "k1, or 256 where k1 is n", "Timesteps read at once.")
@click.option("--memory", metavar="BYTES", help='A budget for an update, such as "500MB", that chooses the segment.')
@_setting("--segment", int, "as ss.TBPTT has it", "Timesteps whose activations live at once.")
@_setting("--task", click.Choice(["auto", "language", "forecast"]), "auto", "As train has it.")
@_setting("--field", str, "x", "The field of a language model.")
@_setting("--inputs", _names, "all of floats", "The fields that a forecast is made from.", metavar="NAME,...")
@_setting("--targets", _names, "the inputs", "The fields that are forecast.", metavar="NAME,...")
@_setting("--horizon", int, "1", "How many timesteps ahead.")
@_setting("--split", str, "naive", "As train has it.", metavar="naive|as-is|domain:NAME")
@_setting("--layout", click.Choice(["sequences", "even"]), "as train has it", "How the lanes are filled.")
@_setting("--held-out", float, "0.05", "The share of the sequences that is not trained on.")
@_setting("--cell", click.Choice(["lstm", "gru"]), "lstm", "The kind of recurrent network.")
@_setting("--hidden", int, "256, or 64 for a forecast", "Its size.")
@_setting("--embedding", int, "64", "The size of the vector that stands for a byte or token.")
@_setting("--layers", int, "1", "Recurrent layers.")
@_setting("--dropout", float, "0.0", "The probability of dropout.")
@click.option("--checkpoint", metavar="FILE", help="The checkpoint.pt of a run, whose model and settings are taken.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one line of JSON.")
def plan(store: str, memory: str | None, checkpoint: str | None, as_json: bool, **options: Any) -> None:
    """Say what training on STORE needs, before anything runs: memory, time, windows and updates."""
    given: dict[str, Any] = {
        name: None if value == "n" else value for name, value in options.items() if value is not None
    }
    described = [name for name in ("cell", "hidden", "embedding", "layers", "dropout") if name in given]
    if checkpoint is not None and described:
        raise click.UsageError(f"--checkpoint names a model and --{described[0]} describes another: pass one of them")
    from streamseq.storage.store import open as open_store
    from streamseq.training import TrainingSettings, load_model
    from streamseq.training.plan import plan as make

    model = None
    if checkpoint is None:
        settings = TrainingSettings(**given)
    else:
        model, settings = load_model(checkpoint)
        # Another budget is asked for than the one that the run had.
        settings = replace(settings, **({"segment": None} if memory is not None else {}) | given)
        model.train()
    found = make(open_store(store), settings, model=model, memory=memory)
    click.echo(json.dumps(found.as_dict()) if as_json else found.as_table())


@commands.command()
@click.option("--out", metavar="DIR", default="streamseq-demo", show_default=True, help="Where to put what it makes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON, the story elsewhere.")
def demo(out: str, as_json: bool) -> None:
    """Go the whole road on this Python's own library: ingest, train, stop, resume, result."""
    from streamseq.training.demo import demo as go

    result = go(out, say=lambda line: click.echo(line, err=as_json))
    if as_json:
        click.echo(json.dumps(result.as_dict()))


class _StoppedError(click.ClickException):
    """Ctrl-C, with how to go on."""

    exit_code = _INTERRUPTED


class _Lines:
    """Hears of a run's progress where there is no terminal: notes and now and then a figure, on standard error."""

    def __init__(self) -> None:
        self._said = monotonic()

    def show(self, progress: Progress) -> None:
        """A line, where the last one was a while ago."""
        if monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = monotonic()
            self.note(f"update {progress.update:,} of {progress.planned:,}: {progress}")

    def note(self, text: str) -> None:
        """Print a line."""
        click.echo(text, err=True)
