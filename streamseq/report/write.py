"""`report`: what lies at a path, a store, a run or a search, as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamseq.core.errors import StoreError, StreamseqError
from streamseq.core.sizes import format_bytes
from streamseq.report.page import page_html, plotly_js
from streamseq.report.parts import Page
from streamseq.storage.interface import Store
from streamseq.storage.places.commit import replace_file
from streamseq.storage.places.location import is_remote, local_path
from streamseq.storage.store import open as open_store

# What says that a folder is that of a search, of a run, or of an advice alone.
_ADVICE, _SEARCH, _RUN = "advice.json", "study.log", ("metrics.jsonl", "checkpoint.pt")
_NAME = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report that was written.

    Args:
        path: What it is of.
        kind: "store", "run", "search" or "advice".
        out: The file.
        bytes: Its size.
    """

    path: str
    kind: str
    out: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"the report of the {self.kind} {self.path} is {self.out} ({format_bytes(self.bytes)})"


def report(
    path: Store | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    store: Store | str | os.PathLike[str] | None = None,
    lanes: int | None = None,
    window: int | None = None,
    version: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Write what there is to see of a store, a training run or a search as one HTML file, which fetches nothing.

    Of a store: versions, fields, lengths, statistics of values, stored boundaries, and how it lies on lanes; no values
    are read. Of a run: losses, speed, time spent waiting for data, memory, settings. Of a search: its trials, their
    losses over time, over k1 and k2, against memory and time, and the best one; and of each the advice that lies in its
    folder. Runs and searches need not be finished.

    Args:
        path: A store, or where one lies, also in object storage; the folder of a run, a search, or an advice.
        out: The file, which appears at once. None: `report.html` in the folder of a run, search or advice;
            `NAME.report.html` beside a store, or in the current folder of one that is not on this machine.
        store: What a run was trained on, where the run does not say it: with it memory is predicted, and lanes drawn.
        lanes, window: Of the schedule that is drawn of a store; None: up to 32, and 256.
        version: Of a store; None: the newest one.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        ImportError: plotly is not installed: `pip install streamseq[report]`; of a search optuna.
        StoreError: There is neither a store nor a run nor a search at the path.
        CorruptionError: What says what a store holds is not what was written.
        ValueError: A number is less than 1, or `out` is missing of a store in memory.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("float32")}) as writer:
        ...         writer.write("plant-3", x=np.zeros(100, np.float32))
        ...     made = ss.report(folder + "/plants.zarr")
        >>> made.kind, made.out.rsplit("/", 1)[1]
        ('store', 'plants.zarr.report.html')
    """
    for name, value in (("lanes", lanes), ("window", window)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is at least 1, got {value}")
    plotly = plotly_js()
    if isinstance(path, Store) or is_remote(path):
        folder, found = None, "store"
    else:
        folder = local_path(path)
        found = _kind(folder)
    if found != "store" and version is not None:
        raise ValueError(f"a version is of a store, and {path} is a {found}: leave it out")
    target = _target(path, folder, found, out)
    page: Page
    if found == "store":
        from streamseq.report.store import store_page

        opened = path if isinstance(path, Store) else open_store(path, version, storage_options=storage_options)
        page = store_page(opened, lanes, window)
    elif found == "run":
        from streamseq.report.run import run_page

        assert folder is not None
        page = run_page(folder, store if store is None or isinstance(store, Store) else os.fspath(store))
    elif found == "advice":
        from streamseq.report.advice import advice_page

        assert folder is not None
        page = advice_page(folder)
    else:
        from streamseq.report.search import search_page

        assert folder is not None
        page = search_page(folder)
    content = page_html(page, plotly).encode()
    replace_file(target, lambda file: file.write(content))
    return Report(path=page.place, kind=found, out=os.fspath(target), bytes=len(content))


def _kind(folder: Path) -> str:
    """What lies in a folder.

    Raises:
        StoreError: Nothing of which there is a report.
    """
    if (folder / _SEARCH).is_file():
        return "search"
    if any((folder / name).is_file() for name in _RUN):
        return "run"
    if (folder / "versions").is_dir():
        return "store"
    if (folder / _ADVICE).is_file():
        return "advice"
    what = "an empty folder" if folder.is_dir() and not any(folder.iterdir()) else None
    what = what or ("a file" if folder.is_file() else "another folder" if folder.is_dir() else "not there")
    raise StoreError(
        f"a report is of a store (a folder with versions/), a run ({' or '.join(_RUN)}), a search ({_SEARCH}) or an "
        f"advice ({_ADVICE}), and {folder} is {what}: name one of these"
    )


def _target(
    path: Store | str | os.PathLike[str], folder: Path | None, kind: str, out: str | os.PathLike[str] | None
) -> Path:
    """Where the report is written.

    Raises:
        ValueError: It is not said, and follows from nothing.
        StreamseqError: There is no such folder.
    """
    if out is not None:
        target = Path(out)
        if target.is_dir():
            target = target / _NAME
    elif folder is not None:
        target = folder / _NAME if kind != "store" else folder.with_name(f"{folder.name}.{_NAME}")
    else:
        uri = path.uri if isinstance(path, Store) else os.fspath(path)
        if isinstance(path, Store) and not is_remote(uri):
            if not Path(uri).exists():
                raise ValueError(f"the report of {uri} has no place of its own: say where to write it, out=")
            target = Path(uri).with_name(f"{Path(uri).name}.{_NAME}")
        else:
            target = Path(f"{uri.rstrip('/').rsplit('/', 1)[-1]}.{_NAME}")
    if not target.parent.is_dir():
        raise StreamseqError(f"a report is written into a folder that exists, and {target.parent} does not: make it")
    return target
