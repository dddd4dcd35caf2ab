"""The command that advises: it reads options, calls the library and prints."""

from __future__ import annotations

import json
from typing import Any

import click

# Which options go with which of the two reports.
_OF_A_CHECKPOINT = ("probe", "k2", "lanes")
_OF_DATA = ("seconds", "updates", "memory", "task", "field", "inputs", "targets", "horizon", "seed")


def _names(value: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in value.split(",")]


@click.command()
@click.argument("store")
@click.option("--bias", type=float, default=0.1, show_default=True, help="The relative bias that is tolerated.")
@click.option("--k1", type=int, help="Timesteps from one update to the next.  [default: chosen, or as in the run]")
@click.option(
    "--out",
    metavar="DIR|FILE.png",
    help="A folder for advice.json and the pictures; with --checkpoint where to draw the influence and the bias.",
)
@click.option("--seconds", type=float, help="How long it may take, about.  [default: 60]")
@click.option("--updates", type=int, help="How many updates the probe training makes at most.  [default: 1000]")
@click.option("--memory", metavar="BYTES", help='A budget for an update, such as "500MB", that chooses the segment.')
@click.option(
    "--task", type=click.Choice(["auto", "language", "forecast"]), help="What is learnt, as streamseq train has it."
)
@click.option("--field", help="The field of a language model.  [default: x]")
@click.option("--inputs", type=_names, metavar="NAME,...", help="The fields that a forecast is made from.")
@click.option("--targets", type=_names, metavar="NAME,...", help="The fields that are forecast.")
@click.option("--horizon", type=int, help="How many timesteps ahead numbers are forecast.  [default: 1]")
@click.option("--seed", type=int, help="Of the probe training.  [default: 0]")
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="A trained model, the checkpoint.pt of a run of streamseq train: how much of its gradient a k2 loses.",
)
@click.option("--probe", type=int, help="With it: timesteps of a sequence that are looked at.  [default: 1024 or more]")
@click.option(
    "--k2", metavar="K2,K2,...", help="With it: those to compare.  [default: k1, 2 k1, ... to half the probe]"
)
@click.option("--lanes", type=int, help="With it: sequences that are looked at, at most.  [default: 8]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def advise(
    store: str,
    bias: float,
    k1: int | None,
    out: str | None,
    checkpoint: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Propose k1, k2, segment, lanes, layout and split for STORE, with reasons, from its data and a short training.

    It takes about a minute. With --checkpoint it measures how much of a trained model's gradient a truncation loses.
    """
    given = {name: value for name, value in options.items() if value is not None}
    wrong = [name for name in given if name in (_OF_DATA if checkpoint is not None else _OF_A_CHECKPOINT)]
    if wrong:
        other = "goes with --checkpoint: name one" if checkpoint is None else "is chosen by the run: leave it out"
        raise click.UsageError(f"--{wrong[0]} {other}")
    try:
        if checkpoint is None:
            result = _from_data(store, bias, k1, out, given, quiet)
        else:
            result = _of_checkpoint(store, checkpoint, bias, k1, out, given)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(result[0]) if as_json else result[1])


def _from_data(
    store: str, bias: float, k1: int | None, out: str | None, given: dict[str, Any], quiet: bool
) -> tuple[dict[str, Any], str]:
    from streamseq.search.advise import advise as run
    from streamseq.training.settings import TrainingSettings

    own = {name: given.pop(name) for name in ("seconds", "updates", "memory") if name in given}
    progress = None if quiet else lambda text: click.echo(f"advise: {text}", err=True)
    found = run(store, settings=TrainingSettings(**given), bias=bias, k1=k1, out=out, progress=progress, **own)
    return found.as_dict(), str(found)


def _of_checkpoint(
    store: str, checkpoint: str, bias: float, k1: int | None, out: str | None, given: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    from streamseq.training.bias_report import report_bias

    if "k2" in given:
        try:
            given["k2"] = [int(each) for each in given["k2"].split(",")]
        except ValueError:
            listed = f"{given['k2']!r} is not a list of numbers such as 64,128"
            raise click.BadParameter(listed, param_hint="--k2") from None
    found = report_bias(store, checkpoint, bias=bias, k1=k1, out=out, **given)
    return found.as_dict(), found.as_table()


COMMANDS = (advise,)
