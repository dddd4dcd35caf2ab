"""The power fails, anywhere: what was acknowledged is on the disk, and nothing partial is seen."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import jobs
from support.file_layer import Do, Operation, file_layer
from support.power import Disk, lay_out


class Cuts:
    """An `act` that collects what may be left if the power fails after an operation.

    Args:
        folder: The folder that is watched.
        seeds: By each number some of what was not on the disk is left; None stands for none of it.
        step: After how many operations the power fails again.
    """

    def __init__(self, folder: Path, seeds: list[int | None], step: int) -> None:
        self.disk = Disk(folder)
        self._seeds = seeds
        self._step = step
        self.acknowledged = 0
        #: The operation, the version that was acknowledged by then, what is left.
        self.left: list[tuple[str, int, dict[str, bytes | None]]] = []

    def __call__(self, operation: Operation, do: Do) -> Any:
        result = self.disk(operation, do)
        if operation.number % self._step == 0 or operation.kind in ("rename", "link"):
            self.cut(str(operation))
        return result

    def cut(self, where: str) -> None:
        """Have the power fail now, once for each seed."""
        for seed in self._seeds:
            chance = None if seed is None else random.Random(f"{seed} {where}")
            self.left.append((f"{where}, seed {seed}", self.acknowledged, self.disk.after_power_failure(chance)))


def check_cuts(folder: Path, backend: str, job: str, seeds: list[int | None], step: int) -> None:
    base = jobs.prepare(job, folder / "disk", backend)
    cuts = Cuts(folder / "disk", seeds, step)
    cuts.acknowledged = base

    def acknowledge(address: Path, version: int) -> None:
        cuts.acknowledged = version
        cuts.cut("acknowledged")

    with file_layer(folder / "disk", cuts):
        jobs.JOBS[job](folder / "disk", backend, 1, acknowledge)
    assert len(cuts.left) > 15 * len(seeds)
    for number, (where, acknowledged, left) in enumerate(cuts.left):
        after = folder / str(number)
        lay_out(left, after)
        try:
            jobs.check_outcome(after / "store-0", backend, acknowledged, acknowledged + 1)
        except Exception as error:
            error.add_note(f"the power failed at {where}")
            raise
        shutil.rmtree(after)


@pytest.mark.parametrize("job", ["create", "append", "compact"])
def test_what_was_acknowledged_outlives_a_power_failure(tmp_path, backend, job):
    step = {"zarr": 9, "arrow": 5}[backend] * (4 if job == "compact" else 1)
    check_cuts(tmp_path, backend, job, [None, 1], step)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("job", ["create", "append", "compact"])
def test_what_was_acknowledged_outlives_any_power_failure(tmp_path, backend, job):
    check_cuts(tmp_path, backend, job, [None, *range(4)], 1)
