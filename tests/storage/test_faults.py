"""Disks that are full or broken: whichever call fails, the caller is told, and the store is as it was."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import jobs
from support.file_layer import Do, Operation, file_layer

import streamseq as ss

# A full disk still lets go of what is on it.
_NEEDS_ROOM = {"open", "write", "fsync", "rename", "replace", "link", "mkdir"}


class Fault:
    """An `act` that fails from operation number `at` on, or that one alone.

    Args:
        code: `errno.ENOSPC` or `errno.EIO`.
        at: The number of the operation; of those alone that can fail so.
        lasting: Whether all that come after it fail as well.
    """

    def __init__(self, code: int, at: int, lasting: bool) -> None:
        self._code = code
        self._at = at
        self._lasting = lasting
        self._seen = 0
        #: The operations that failed.
        self.failed: list[Operation] = []

    def __call__(self, operation: Operation, do: Do) -> Any:
        if self._code == errno.ENOSPC and operation.kind not in _NEEDS_ROOM:
            return do()
        self._seen += 1
        if self._seen - 1 < self._at or (self._seen - 1 > self._at and not self._lasting):
            return do()
        self.failed.append(operation)
        if operation.kind == "write":
            do(0.5)
        raise OSError(self._code, os.strerror(self._code), operation.path)


def run(job: str, folder: Path, backend: str, fault: Fault) -> tuple[int, BaseException | None]:
    """Run a job on a disk with a fault; return the version that it acknowledged, 0 for none, and what it raised."""
    acknowledged = 0

    def acknowledge(address: Path, version: int) -> None:
        nonlocal acknowledged
        acknowledged = version

    try:
        with file_layer(folder, fault):
            jobs.JOBS[job](folder, backend, 1, acknowledge)
    except (OSError, ss.StreamseqError) as error:
        return acknowledged, error
    return acknowledged, None


def check_fault(job: str, made: Path, base: int, folder: Path, backend: str, fault: Fault) -> bool:
    """Run a job with a fault and check what comes of it; return whether the fault was met at all."""
    shutil.copytree(made, folder)
    address = folder / "store-0"
    acknowledged, error = run(job, folder, backend, fault)
    if not fault.failed:
        assert error is None
        assert acknowledged == base + 1
        return False
    where = f"{fault.failed[0]} then {error!r}"
    # Either it is said to be there and is, or the caller is told.
    assert (error is None) == (acknowledged == base + 1), where
    visible = jobs.is_store(address) and ss.open(address).version == base + 1
    if error is not None and visible:
        # It came to be, and what failed is to say whether its name will be there after a power failure.
        asked = {operation.path for operation in fault.failed if operation.kind in ("fsync", "open folder")}
        assert "store-0/versions" in asked, where
        assert isinstance(error, ss.StoreError), where
        assert f"{address / 'versions'}/{base + 1:08d}.json is there" in str(error), where
    jobs.check_outcome(address, backend, max(acknowledged, base), base + 1 if visible else base)
    return True


FULL, FULL_ONCE, BROKEN, BROKEN_ONCE = (
    pytest.param(code, lasting, id=id)
    for id, code, lasting in [
        ("full", errno.ENOSPC, True),
        ("full once", errno.ENOSPC, False),
        ("broken", errno.EIO, True),
        ("broken once", errno.EIO, False),
    ]
)


def check_faults(folder: Path, backend: str, job: str, code: int, lasting: bool, step: int = 1) -> None:
    """Have one operation after the other fail, until the job meets no fault any more."""
    base = jobs.prepare(job, folder / "made", backend)
    number = 0
    while check_fault(job, folder / "made", base, folder / str(number), backend, Fault(code, number, lasting)):
        shutil.rmtree(folder / str(number))
        number += step
    assert number > 40, "the layer sees what the job does"


@pytest.mark.parametrize(("code", "lasting"), [FULL, BROKEN_ONCE])
def test_whatever_fails_the_caller_is_told_and_the_store_is_as_it_was(tmp_path, backend, code, lasting):
    # The soak test has all jobs, and every single operation of those that have many.
    job, step = {
        ("zarr", True): ("create", 4),
        ("zarr", False): ("append", 4),
        ("arrow", True): ("append", 1),
        ("arrow", False): ("compact", 4),
    }[backend, lasting]
    check_faults(tmp_path, backend, job, code, lasting, step)


@pytest.mark.parametrize(("code", "lasting"), [FULL, BROKEN_ONCE])
def test_a_job_whose_disk_fails_tells_and_commits_nothing(tmp_path, backend, code, lasting):
    # Two tasks write at once, in an order of their own: which operation fails differs from run to run.
    check_faults(tmp_path, backend, "ingest", code, lasting, step=41)


def run_in_a_namespace(*command: str | Path) -> str:
    """Run a program that may mount file systems of its own, and return what it printed."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system has no namespaces for users")
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run([*alone, *command], env=paths, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize("job", ["create", "append", "compact"])
def test_a_file_system_without_room(tmp_path, backend, job):
    assert int(run_in_a_namespace(sys.executable, "-m", "support.small_disk", tmp_path, backend, job)) > 3


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("job", sorted(jobs.JOBS))
@pytest.mark.parametrize(("code", "lasting"), [FULL, FULL_ONCE, BROKEN, BROKEN_ONCE])
def test_whatever_fails_in_whatever_way(tmp_path, backend, job, code, lasting):
    check_faults(tmp_path, backend, job, code, lasting)
