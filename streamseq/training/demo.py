"""The demo: the whole road from files to a model that writes, with a stop half way, on this Python's own library."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from streamseq.core.errors import StreamseqError
from streamseq.storage.store import open as open_store
from streamseq.training.baselines import Baselines, baselines
from streamseq.training.build import load_model
from streamseq.training.holdout import hold_out
from streamseq.training.metrics import MetricsLog
from streamseq.training.model import ByteLanguageModel
from streamseq.training.settings import TrainingSettings
from streamseq.training.trainer import CHECKPOINT, METRICS

#: One to two minutes on two cores. The number of updates is fixed, so the result does not depend on the speed.
#: In so short a run many updates, each from many files, matter more than reaching far back.
SETTINGS = TrainingSettings(
    k1=16,
    k2=32,
    lanes=64,
    hidden=192,
    updates=2800,
    learning_rate=1e-2,
    held_out_timesteps=600_000,
    evaluate_every=700,
)

PROMPT = b"import os\nimport sys\n\n\nclass "
SAMPLE_BYTES = 400

_MARKER = ".streamseq-demo"
_STORE = "stdlib.zarr"
_RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came of the demo.

    Args:
        held_out_bits_per_byte: Of the model, on files that it was not trained on.
        order_0, zlib_each, zlib_joined: See `Baselines`, on the same bytes.
        updates, stopped_at: In all, and when the first process was stopped.
        training_seconds, seconds: Of the updates alone, and of everything.
        timesteps_per_second: Of the updates alone.
        sample: What the model wrote.
        store, checkpoint, curves: Paths; curves is None where it was not drawn.
    """

    held_out_bits_per_byte: float
    order_0: float
    zlib_each: float
    zlib_joined: float
    updates: int
    stopped_at: int
    training_seconds: float
    seconds: float
    timesteps_per_second: float
    sample: str
    store: str
    checkpoint: str
    curves: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return asdict(self)


def demo(
    out: str = "streamseq-demo",
    *,
    say: Callable[[str], object] = print,
    sources: Sequence[Path] | None = None,
    settings: TrainingSettings = SETTINGS,
) -> DemoResult:
    """Ingest source code, train, be stopped half way, go on in a new process, and show what came of it.

    Args:
        out: The folder of the demo; what an earlier demo made in it is made anew.
        say: Gets the story, line by line.
        sources: Files; None: the Python standard library that is running.
        settings: Of the training.

    Raises:
        ValueError: `out` holds something that no demo made.
        StreamseqError: A command of the demo failed; it has said why on standard error.
    """
    begin = time.monotonic()
    folder = Path(out)
    _make_room(folder)
    files = standard_library() if sources is None else list(sources)
    store, run = folder / _STORE, folder / _RUN

    what = "the standard library of this Python" if sources is None else "these files"
    say(f"1. Ingest {what} ({len(files):,} files) into a Zarr store")
    say(f"   $ streamseq ingest text … --to {store}")
    report = _command("ingest", "text", *map(str, files), "--to", str(store), "--on-error", "skip", "--quiet")
    say(f"   {report['sequences']:,} sequences, {report['timesteps']:,} bytes in {report['seconds']:.1f} s\n")

    options = _options(settings)
    half = max(1, (settings.updates or 2) // 2)
    say(f"2. Train a byte-level {settings.cell.upper()}-{settings.hidden} by TBPTT({settings.k1}, {settings.k2})")
    say(f"   $ streamseq train {store} --out {run} \\")
    say(f"       {' '.join(options)}")
    stopped_at = _train_until(half, run, "train", str(store), "--out", str(run), *options)
    say(f"   Ctrl-C after update {stopped_at:,} of {settings.updates:,}: state, position and parameters are saved\n")

    say("3. Go on in a new process, as if nothing had happened")
    say(f"   $ streamseq train {store} --out {run} --resume")
    result = _command("train", str(store), "--out", str(run), "--resume")
    held_out = result["held_out_bits_per_byte"]
    say(
        f"   {result['updates']:,} updates, {result['timesteps']:,} timesteps in {result['seconds']:.0f} s: "
        f"{result['timesteps_per_second']:,.0f} timesteps/s,"
    )
    say(
        f"   {100 * result['data_wait_fraction']:.1f} % of the time waiting for data, {result['threads']} thread(s), "
        f"peak memory {result['peak_rss_bytes'] / 2**20:,.0f} MiB\n"
    )

    texts = _held_out_texts(store, settings)
    simple = baselines(texts)
    say(f"4. Bits per byte on {len(texts)} files that it was not trained on (their first parts, {_size(texts)})")
    for line in _table(held_out, simple):
        say(line)

    model, _ = load_model(run / CHECKPOINT)
    assert isinstance(model, ByteLanguageModel)
    sample = _printable(PROMPT + model.sample(PROMPT, SAMPLE_BYTES, temperature=0.7))
    say("\n5. What it writes")
    for line in sample.splitlines():
        say(f"   | {line}")
    seconds = time.monotonic() - begin
    say(f"\nAll of it took {seconds:.0f} s.")
    say(f"  store       {store}\n  checkpoint  {run / CHECKPOINT}\n  curves      {result['curves'] or 'not drawn'}")
    return DemoResult(
        held_out_bits_per_byte=held_out,
        **asdict(simple),
        updates=result["updates"],
        stopped_at=stopped_at,
        training_seconds=result["seconds"],
        seconds=seconds,
        timesteps_per_second=result["timesteps_per_second"],
        sample=sample,
        store=str(store),
        checkpoint=str(run / CHECKPOINT),
        curves=result["curves"],
    )


def standard_library() -> list[Path]:
    """The Python files of the standard library that is running, sorted; packages installed beside it left out."""
    root = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(path for path in root.rglob("*.py") if not others & set(path.relative_to(root).parts))


def _make_room(folder: Path) -> None:
    """Make the folder; of an earlier demo remove what that one made, and nothing else."""
    if folder.is_dir() and (folder / _MARKER).exists():
        for name in (_STORE, _RUN):
            shutil.rmtree(folder / name, ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something that no demo made: name a new folder, or remove it yourself")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text("Made by `streamseq demo`, which removes the store and the run here.\n")


def _options(settings: TrainingSettings) -> list[str]:
    """The command line's options for what differs from the defaults."""
    default = TrainingSettings()
    options = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != getattr(default, field.name):
            options += ["--" + field.name.replace("_", "-"), str(value)]
    return options


def _arguments(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "streamseq", *arguments, "--json"]


def _command(*arguments: str) -> dict[str, Any]:
    """Run a command of streamseq in a process of its own, and return what it prints as JSON."""
    done = subprocess.run(_arguments(arguments), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StreamseqError(f"streamseq {arguments[0]} failed with exit code {done.returncode}: see above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _train_until(update: int, run: Path, *arguments: str) -> int:
    """Run a training command until its log has reached an update, interrupt it, and return where it stopped."""
    log = MetricsLog(run / METRICS)
    with subprocess.Popen(_arguments(arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not any(row["update"] >= update for row in log.rows()):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    # It is 0 where the run was finished before the signal came.
    if process.returncode not in (0, 128 + signal.SIGINT):
        raise StreamseqError(f"streamseq train, interrupted, ended with exit code {process.returncode}: see above")
    return int(json.loads(output.splitlines()[-1])["updates"])


def _held_out_texts(store: Path, settings: TrainingSettings) -> list[bytes]:
    opened = open_store(store)
    split = hold_out(opened, share=settings.held_out, seed=settings.seed, limit=settings.held_out_timesteps)
    return [opened.read(id, start, stop)[settings.field].tobytes() for id, start, stop in split.held_out]


def _size(texts: Sequence[bytes]) -> str:
    return f"{sum(map(len, texts)) / 1e6:.1f} MB"


def _table(held_out: float, simple: Baselines) -> list[str]:
    rows = [
        (simple.order_0, "byte frequencies (order 0)"),
        (simple.zlib_each, "zlib -9, each file by itself"),
        (simple.zlib_joined, "zlib -9, all files together"),
        (held_out, "the model"),
    ]
    return [f"   {bits:6.3f}  {name}" for bits, name in rows]


def _printable(text: bytes) -> str:
    """Text for a terminal: lines that are not blank, with one sign for all that is not printable."""
    lines = [line for line in text.decode("utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines)
