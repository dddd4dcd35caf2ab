"""Run in a mount namespace of its own: jobs on a real file system with room for less than they write, then for more."""

import errno
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

from support import jobs

_PAGE_BYTES = 4096
_LARGE_PAGES = 4096


def _size(folder: Path, pages: int, how: str = "remount") -> None:
    """Give the file system on a folder so many pages."""
    # A size of 0 is no limit at all.
    options = f"{how},size={max(pages, 1) * _PAGE_BYTES}".lstrip(",")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def fill(folder: Path, backend: str, job: str) -> int:
    """Run a job with more and more room until it succeeds, and check what comes of it; return how often it failed."""
    for failed, room in enumerate(count(0, 2)):
        _size(folder, _LARGE_PAGES, how="")
        base = jobs.prepare(job, folder, backend)
        used = os.statvfs(folder)
        _size(folder, used.f_blocks - used.f_bfree + room)
        acknowledged = [base]
        try:
            jobs.JOBS[job](folder, backend, 1, lambda _, version, told=acknowledged: told.append(version))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        _size(folder, _LARGE_PAGES)
        jobs.check_outcome(folder / "store-0", backend, acknowledged[-1], acknowledged[-1])
        subprocess.run(["umount", str(folder)], check=True)
        if len(acknowledged) > 1:
            return failed
    raise AssertionError


if __name__ == "__main__":
    print(fill(Path(sys.argv[1]), *sys.argv[2:]))
