"""The command that searches: it reads options, calls the library and prints."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from streamseq.commands.report import write_into

if TYPE_CHECKING:
    from streamseq.search.result import SearchResult

_ADVISED = ("lanes", "layout", "split")


def _given(values: tuple[str, ...]) -> dict[str, str]:
    """Settings of the form NAME=VALUES."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, choices = text.partition("=")
        if not equals or not name or not choices:
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUES", param_hint="--set")
        found[name.strip().replace("-", "_")] = choices
    return found


class _Lines:
    """Says after each trial how it did."""

    def __init__(self) -> None:
        self._seen: int | None = None

    def __call__(self, result: SearchResult) -> None:
        first = self._seen is None
        for trial in result.trials[self._seen or 0 :]:
            values = ", ".join(f"{name}={'n' if value is None else value}" for name, value in trial.values.items())
            loss = (
                trial.state
                if trial.loss is None
                else f"{trial.loss:.4f}{'' if trial.state == 'complete' else ', pruned'}"
            )
            if not first:
                click.echo(
                    f"trial {trial.number} ({len(result.trials)} of {result.planned}): {values}: {loss}", err=True
                )
        if first:
            before = f", {len(result.trials)} of them done before" if result.trials else ""
            click.echo(f"search: {result.planned} candidates{before}", err=True)
        self._seen = len(result.trials)


@click.command()
@click.argument("store")
@click.option(
    "--out", metavar="DIR", required=True, help="The folder of the search: its study, trials, the best model."
)
@click.option(
    "--k1", metavar="VALUES", help="Timesteps between updates.  [default: as advised, or 32,64,128 with --k2]"
)
@click.option(
    "--k2",
    metavar="VALUES",
    help="Timesteps that back-propagation reaches.  [default: as advised, or k1,2*k1 with --k1]",
)
@click.option(
    "--from-advice",
    metavar="DIR",
    help="Start from what streamseq advise STORE --out DIR proposed; its k1 and k2 are taken.",
)
@click.option("--lanes", metavar="VALUES", help="Sequences side by side.  [default: 32]")
@click.option("--layout", metavar="VALUES", help="sequences, even, or both.  [default: as streamseq train has it]")
@click.option("--split", metavar="VALUES", help="naive, as-is, domain:NAME, or several.  [default: naive]")
@click.option(
    "--set",
    "others",
    metavar="NAME=VALUES",
    multiple=True,
    help="Any other setting of streamseq train, such as learning_rate=1e-3,4e-3; one value is the same for every "
    "candidate. Can be repeated.",
)
@click.option("--timesteps", type=click.IntRange(min=1), help="The budget of each candidate.  [default: 1,000,000]")
@click.option("--updates", type=click.IntRange(min=1), help="The budget in updates instead.")
@click.option("--seconds", type=float, help="The budget in seconds of training instead.")
@click.option(
    "--evaluations", type=click.IntRange(min=1), default=9, show_default=True, help="How often each is evaluated."
)
@click.option(
    "--sampler",
    type=click.Choice(["grid", "random", "tpe"]),
    default="grid",
    show_default=True,
    help="All candidates, random ones, or those near good ones.",
)
@click.option("--trials", type=click.IntRange(min=1), help="How many candidates.  [default: the whole grid]")
@click.option("--prune", is_flag=True, help="Stop candidates that fall behind (successive halving).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampler.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that share this machine's cores.  [default: 1]")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, whose workers run the trials instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def search(
    store: str,
    out: str,
    k1: str | None,
    k2: str | None,
    lanes: str | None,
    layout: str | None,
    split: str | None,
    from_advice: str | None,
    others: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Try k1, k2 and other settings of the trainer on STORE, each with the same budget, and keep the best.

    Without --k1 and --k2 it begins with an advice, as streamseq advise STORE makes it, and tries what lies around it.

    VALUES stand between commas; n is the whole sequence, 2*k1 is computed from k1, LOW..HIGH is a range (with --sampler
    random or tpe). A search that was stopped or killed goes on with the same command.
    """
    from streamseq.search.run import search as run
    from streamseq.search.run import usual_settings
    from streamseq.search.space import Range, parse_choices
    from streamseq.training.settings import TrainingSettings

    named = {"k1": k1, "k2": k2, "lanes": lanes, "layout": layout, "split": split, **_given(others)}
    advised = from_advice is not None or (named["k1"] is None and named["k2"] is None)
    if not advised:
        named = {**named, "k1": named["k1"] or "32,64,128", "k2": named["k2"] or "k1,2*k1"}
    space: dict[str, Any] = {}
    same: dict[str, Any] = {}
    for name, text in named.items():
        if text is None:
            continue
        if name not in TrainingSettings.__dataclass_fields__:
            raise click.BadParameter(f"the trainer has no setting {name!r}", param_hint="--set")
        choices = parse_choices(text)
        # What an advice proposes, too, is in the space, so that it is not taken from there.
        if isinstance(choices, Range) or len(choices) > 1 or name in ("k1", "k2") or (advised and name in _ADVISED):
            space[name] = choices
        else:
            same[name] = choices[0]
    settings = usual_settings(options["timesteps"], options["evaluations"], **same)
    result = run(
        store,
        out,
        space,
        advice=from_advice or advised,
        settings=settings,
        progress=None if quiet else _Lines(),
        say=None if quiet else lambda text: click.echo(f"advise: {text}", err=True),
        **options,
    )
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        click.echo(str(result))
        click.echo(
            f"train on with its settings: {shlex.join(['streamseq', 'train', store, '--like', out, '--out', 'run'])}"
        )
    sys.stdout.flush()
    write_into(result.out, quiet=quiet)


COMMANDS = (search,)
