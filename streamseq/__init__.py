"""streamseq: train sequence models on sequences that do not fit in memory.

Importing the package is cheap: torch, zarr, pyarrow and dask are imported when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from streamseq._version import __version__
from streamseq.core import splits, truncation
from streamseq.core.balance import Balance
from streamseq.core.errors import (
    ContinuityError,
    CorruptionError,
    PlanError,
    ResumeError,
    StoreError,
    StreamseqError,
    VersionConflictError,
)
from streamseq.core.fields import Field
from streamseq.core.tokens import StateToken

if TYPE_CHECKING:
    from streamseq import report, search
    from streamseq.data.carry import Carry
    from streamseq.data.curriculum import Curriculum
    from streamseq.data.dataset import StreamDataset
    from streamseq.data.loader import StreamLoader
    from streamseq.data.preview import preview
    from streamseq.data.window import Window
    from streamseq.etl.job import ingest
    from streamseq.integrations.adapt import adapt
    from streamseq.search.advise import advise
    from streamseq.storage.adopted.arrow import adopt_arrow
    from streamseq.storage.adopted.npy import adopt_npy
    from streamseq.storage.adopted.parquet import adopt_parquet
    from streamseq.storage.adopted.zarr import adopt_zarr
    from streamseq.storage.boundaries.mark import mark
    from streamseq.storage.joined import join
    from streamseq.storage.memory import from_arrays
    from streamseq.storage.statistics.describe import describe, statistics
    from streamseq.storage.store import append, create, open
    from streamseq.storage.upkeep.compact import compact
    from streamseq.storage.upkeep.history import log
    from streamseq.storage.upkeep.leftovers import clean
    from streamseq.storage.upkeep.repair import repair
    from streamseq.storage.upkeep.summary import info
    from streamseq.tbptt.burn_in import burn_in
    from streamseq.tbptt.engine import TBPTT
    from streamseq.training.predict import predict

_LAZY = {
    "Carry": "streamseq.data.carry",
    "Curriculum": "streamseq.data.curriculum",
    "StreamDataset": "streamseq.data.dataset",
    "StreamLoader": "streamseq.data.loader",
    "TBPTT": "streamseq.tbptt.engine",
    "Window": "streamseq.data.window",
    "adapt": "streamseq.integrations.adapt",
    "adopt_arrow": "streamseq.storage.adopted.arrow",
    "adopt_npy": "streamseq.storage.adopted.npy",
    "adopt_parquet": "streamseq.storage.adopted.parquet",
    "adopt_zarr": "streamseq.storage.adopted.zarr",
    "advise": "streamseq.search.advise",
    "append": "streamseq.storage.store",
    "burn_in": "streamseq.tbptt.burn_in",
    "clean": "streamseq.storage.upkeep.leftovers",
    "compact": "streamseq.storage.upkeep.compact",
    "create": "streamseq.storage.store",
    "describe": "streamseq.storage.statistics.describe",
    "from_arrays": "streamseq.storage.memory",
    "info": "streamseq.storage.upkeep.summary",
    "ingest": "streamseq.etl.job",
    "join": "streamseq.storage.joined",
    "log": "streamseq.storage.upkeep.history",
    "mark": "streamseq.storage.boundaries.mark",
    "open": "streamseq.storage.store",
    "predict": "streamseq.training.predict",
    "preview": "streamseq.data.preview",
    "repair": "streamseq.storage.upkeep.repair",
    "statistics": "streamseq.storage.statistics.describe",
}

__all__ = [
    "TBPTT",
    "Balance",
    "Carry",
    "ContinuityError",
    "CorruptionError",
    "Curriculum",
    "Field",
    "PlanError",
    "ResumeError",
    "StateToken",
    "StoreError",
    "StreamDataset",
    "StreamLoader",
    "StreamseqError",
    "VersionConflictError",
    "Window",
    "__version__",
    "adapt",
    "adopt_arrow",
    "adopt_npy",
    "adopt_parquet",
    "adopt_zarr",
    "advise",
    "append",
    "burn_in",
    "clean",
    "compact",
    "create",
    "describe",
    "from_arrays",
    "info",
    "ingest",
    "join",
    "log",
    "mark",
    "open",
    "predict",
    "preview",
    "repair",
    "report",
    "search",
    "splits",
    "statistics",
    "truncation",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in ("etl", "report", "search", "training"):
        return import_module(f"streamseq.{name}")
    raise AttributeError(f"module 'streamseq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "etl", "training"])
