"""What this machine can do: read files, compress their bytes in chunks and write them, and nothing else.

    python benchmarks/bare_ingest.py FOLDER OUT --workers 2 --kind threads

It prints a line of JSON: the bytes, and the seconds from the first file that is read to the last that is on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from numcodecs import zstd

#: As `streamseq ingest text` has it for bytes.
CHUNK_BYTES = 1 << 20
LEVEL = 3
GROUP_BYTES = 32 << 20


def find(folder: str) -> list[list[str]]:
    """The files of a folder without hidden ones, in groups of about equal size."""
    groups: list[list[str]] = []
    size = GROUP_BYTES
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(above, name)
            if not name.startswith(".") and not os.path.islink(path):
                if size >= GROUP_BYTES:
                    groups.append([])
                    size = 0
                groups[-1].append(path)
                size += os.stat(path).st_size
    return groups


def copy(paths: list[str], out: str) -> int:
    """Read files one after the other and write their bytes, compressed; return how many there were."""
    chunk, filled, total = memoryview(bytearray(CHUNK_BYTES)), 0, 0
    with open(out, "wb", buffering=0) as target:
        for path in paths:
            with open(path, "rb", buffering=0) as source:
                while count := source.readinto(chunk[filled:]):
                    total += count
                    filled += count
                    if filled == CHUNK_BYTES:
                        target.write(zstd.compress(chunk, LEVEL))
                        filled = 0
        if filled:
            target.write(zstd.compress(chunk[:filled], LEVEL))
        os.fsync(target.fileno())
    return total


def ready() -> None:
    """What a worker does before the clock runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", choices=["threads", "processes"], default="threads")
    options = parser.parse_args()
    options.out.mkdir()
    groups = find(options.folder)
    outs = [str(options.out / f"{number}") for number in range(len(groups))]
    pools: dict[str, Callable[[], Executor]] = {
        "threads": lambda: ThreadPoolExecutor(options.workers),
        "processes": lambda: ProcessPoolExecutor(options.workers, get_context("forkserver")),
    }
    with pools[options.kind]() as pool:
        for started in [pool.submit(ready) for _ in range(options.workers)]:
            started.result()
        began = time.perf_counter()
        total = sum(pool.map(copy, groups, outs))
        seconds = time.perf_counter() - began
    print(json.dumps({"bytes": total, "seconds": seconds}))


if __name__ == "__main__":
    main()
