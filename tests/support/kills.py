"""Jobs that kill themselves with SIGKILL, or are killed: a light process that forks one child a job."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.file_layer import Operation, file_layer

_CHILD_SECONDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known of a job that ended.

    Args:
        killed: Whether it was killed; else it came to its end.
        acknowledged: By store, the newest version that it acknowledged.
        operations: The operations on files that it began, kinds and paths, in order.
        error: What it raised, None for nothing.
    """

    killed: bool
    acknowledged: dict[str, int]
    operations: list[list[str]]
    error: str | None


class KillServer:
    """Runs jobs in children that are forked from a process that has imported what they need."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.kills"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        job: str,
        folder: Path,
        backend: str,
        *,
        commits: int,
        at: int | None = None,
        when: str = "before",
        after_seconds: float | None = None,
    ) -> Outcome:
        """Run a job until it ends or is killed.

        Args:
            job: One of `support.jobs.JOBS`.
            folder: Where its stores lie.
            backend: "zarr" or "arrow".
            commits: How many it makes.
            at: The number of the operation on files that it kills itself at; None: at none.
            when: "before", "after" or in the "middle" of it; the middle of what is not a write is before it.
            after_seconds: The seconds after its start when it is killed; None: never.
        """
        request = {"job": job, "folder": str(folder), "backend": backend, "commits": commits}
        request |= {"at": at, "when": when, "after_seconds": after_seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that children are forked from has ended"
        return Outcome(**json.loads(answer))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_CHILD_SECONDS + 10)
        self._process.stdout.close()


def _serve() -> None:
    # So that no child has to; nothing here starts a thread.
    import numpy as np
    import pyarrow as pa

    from support import jobs  # noqa: F401

    pa.array(np.zeros(1))  # which imports more, the first time
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            signal.alarm(_CHILD_SECONDS)
            _run_child(request, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as report:
        assert report.readline() == "started\n"
        if request["after_seconds"] is not None:
            time.sleep(request["after_seconds"])
            os.kill(child, signal.SIGKILL)
        lines = report.read().splitlines()
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    acknowledged: dict[str, int] = {}
    operations: list[list[str]] = []
    error = None
    for line in lines:
        what, _, rest = line.partition(" ")
        if what == "acknowledged":
            address, _, version = rest.rpartition(" ")
            acknowledged[address] = int(version)
        elif what == "raised":
            error = rest
        else:
            _, kind, path = rest.split("|")
            operations.append([kind, path])
    return {
        "killed": killed,
        "acknowledged": acknowledged,
        "operations": operations,
        "error": error,
    }


def _run_child(request: dict[str, Any], report: int) -> None:
    from support import jobs

    def say(text: str) -> None:
        os.write(report, f"{text}\n".encode())

    def act(operation: Operation, do: Callable[..., Any]) -> Any:
        say(f"at {operation.number}|{operation.kind}|{operation.path}")
        if operation.number != request["at"]:
            return do()
        if request["when"] == "middle" and operation.kind == "write":
            do(0.5)
        elif request["when"] == "after":
            do()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    folder = Path(request["folder"])
    at_points = request["after_seconds"] is None
    if at_points:
        # What was written outlives the process with or without; test_power_cuts.py is about the rest.
        os.fsync = lambda descriptor: None
    say("started")
    try:
        with file_layer(folder, act) if at_points else contextlib.nullcontext():
            jobs.JOBS[request["job"]](
                folder,
                request["backend"],
                request["commits"],
                lambda address, version: say(f"acknowledged {address} {version}"),
            )
    except BaseException as error:
        say(f"raised {type(error).__name__}: {error}".replace("\n", " "))
        raise


@contextlib.contextmanager
def kill_server() -> Iterator[KillServer]:
    """A server while the block lasts."""
    server = KillServer()
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    _serve()
