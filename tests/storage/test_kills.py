"""Writers are killed with SIGKILL, anywhere: what was acknowledged is there, and nothing partial is seen."""

import os
import random
from pathlib import Path

import pytest
from support import jobs
from support.kills import KillServer, Outcome, kill_server


@pytest.fixture(scope="module")
def server():
    with kill_server() as server:
        yield server


def check(outcome: Outcome, folder: Path, backend: str, base: int) -> None:
    """Every store of a job that was killed holds what was acknowledged, and at most one of them a version more."""
    assert outcome.error is None
    assert outcome.killed
    acknowledged = {folder / "store-0": base} if base else {}
    acknowledged |= {Path(address): version for address, version in outcome.acknowledged.items()}
    unfinished = 0
    for address in {folder / name for name in os.listdir(folder)} | set(acknowledged):
        known = acknowledged.get(address, 0)
        unfinished += len(jobs.check_outcome(address, backend, known, known + 1)) - known
    assert unfinished <= 1


def named_points(operations: list[list[str]]) -> dict[str, int]:
    """The operations around which a commit is decided, by what they are."""
    last_of = {(kind, path.split("/")[1] if "/" in path else ""): n for n, (kind, path) in enumerate(operations)}
    first_of = {kind: n for n, (kind, _) in reversed(list(enumerate(operations)))}
    decided = max(n for n, (kind, path) in enumerate(operations) if kind == "link" and "/versions/0" in path)
    (name,) = {Path(path).name for kind, path in operations[decided : decided + 1]}
    return {
        "first write": first_of["write"],
        "first shard published": first_of["rename"],
        "last shard published": last_of["rename", "shards"],
        "last table published": last_of["rename", "tables"],
        "version staged": min(
            n for n, (kind, path) in enumerate(operations) if kind == "write" and path.endswith(name)
        ),
        "version on the disk": decided - 1,
        "version named": decided,
        "version's staged name removed": decided + 1,
        "folder of versions on the disk": last_of["fsync", "versions"],
        "last operation": len(operations) - 1,
    }


@pytest.mark.parametrize("job", ["create", "append", "compact"])
def test_killed_around_a_commit(server: KillServer, tmp_path, backend, job):
    jobs.prepare(job, tmp_path / "whole", backend)
    whole = server.run(job, tmp_path / "whole", backend, commits=1)
    assert not whole.killed
    for name, number in named_points(whole.operations).items():
        base = jobs.prepare(job, tmp_path / name, backend)
        outcome = server.run(job, tmp_path / name, backend, commits=1, at=number, when="middle")
        assert outcome.operations[-1][0] == whole.operations[number][0], name
        assert not outcome.acknowledged
        check(outcome, tmp_path / name, backend, base)


def test_a_job_killed_while_it_commits(server: KillServer, tmp_path, backend):
    jobs.prepare("ingest", tmp_path / "whole", backend)
    whole = server.run("ingest", tmp_path / "whole", backend, commits=1)
    decided = max(n for n, (kind, path) in enumerate(whole.operations) if kind == "link" and "/versions/0" in path)
    for number in (decided // 2, decided, decided + 1):
        folder = tmp_path / str(number)
        jobs.prepare("ingest", folder, backend)
        check(server.run("ingest", folder, backend, commits=1, at=number), folder, backend, 0)


@pytest.mark.parametrize("job", sorted(jobs.JOBS))
def test_killed_at_a_random_moment(server: KillServer, tmp_path, backend, job):
    base = jobs.prepare(job, tmp_path, backend)
    seconds = random.Random(f"{job} {backend}").uniform(0.1, 0.4)
    check(server.run(job, tmp_path, backend, commits=1000, after_seconds=seconds), tmp_path, backend, base)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("job", ["create", "append", "compact"])
def test_killed_at_every_operation(server: KillServer, tmp_path, backend, job):
    jobs.prepare(job, tmp_path / "whole", backend)
    whole = server.run(job, tmp_path / "whole", backend, commits=1)
    for number, (kind, _) in enumerate(whole.operations):
        for when in ("before", "middle") if kind == "write" else ("before",):
            folder = tmp_path / f"{number} {when}"
            base = jobs.prepare(job, folder, backend)
            outcome = server.run(job, folder, backend, commits=1, at=number, when=when)
            assert not outcome.acknowledged
            check(outcome, folder, backend, base)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_job_killed_at_many_operations(server: KillServer, tmp_path, backend):
    jobs.prepare("ingest", tmp_path / "whole", backend)
    whole = server.run("ingest", tmp_path / "whole", backend, commits=1)
    # Its tasks write at once, and so not always as much.
    for number in range(0, len(whole.operations) - 12, 3):
        folder = tmp_path / str(number)
        jobs.prepare("ingest", folder, backend)
        check(server.run("ingest", folder, backend, commits=1, at=number), folder, backend, 0)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("job", sorted(jobs.JOBS))
def test_killed_at_many_random_moments(server: KillServer, tmp_path, backend, job):
    chance = random.Random(f"many {job} {backend}")
    for number in range(34):
        folder = tmp_path / str(number)
        base = jobs.prepare(job, folder, backend)
        outcome = server.run(job, folder, backend, commits=1000, after_seconds=chance.uniform(0, 0.8))
        check(outcome, folder, backend, base)
