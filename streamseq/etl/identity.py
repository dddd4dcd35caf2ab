"""What a job is, as a key: the same for the same source, settings and code, so that what was done already is known.

Keys are digests of plain values. Whatever cannot be written as plain values has no key, and then nothing is known to be
done already: a job that is run again begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from streamseq._version import __version__
from streamseq.etl.source import Partition, Source
from streamseq.storage.layout import ShardLayout


def job_key(source: Source, layout: ShardLayout) -> str | None:
    """The key of a job: of the source's `settings` and code, of its fields, and of how shards are cut and encoded.

    Which data there is has no part in it, so that a job whose data changed is the same job.

    Args:
        source: Where the data comes from. Without `settings` it has no key.
        layout: How shards are cut and encoded.
    """
    settings = getattr(source, "settings", None)
    if settings is None:
        return None
    try:
        cut = (layout.backend, layout.fields, layout.codecs, layout.chunk_timesteps, layout.shard_timesteps)
        return _digest(["job", __version__, code_of(type(source)), settings, *cut])
    except _NoKeyError:
        return None


def partition_keys(job: str, partitions: Sequence[Partition]) -> list[str] | None:
    """The key of each partition of a job; None where one has none.

    Partitions that are the same in every respect are told apart by their order.
    """
    seen: dict[str, int] = {}
    keys = []
    for partition in partitions:
        try:
            key = _digest(["partition", job, partition.num_bytes, partition.content])
        except _NoKeyError:
            return None
        seen[key] = seen.get(key, 0) + 1
        keys.append(key if seen[key] == 1 else _digest([key, seen[key]]))
    return keys


class _NoKeyError(Exception):
    """A value is not made of plain ones."""


def _digest(value: object) -> str:
    text = json.dumps(_plain(value), separators=(",", ":"))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _plain(value: object) -> Any:
    """A value as JSON holds it, other values as something else."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        return [kind.__qualname__, {name: _plain(getattr(value, name)) for name in _names_of(kind)}]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, PurePath):
        return ["path", os.fspath(value)]
    if isinstance(value, np.generic | np.ndarray | np.dtype):
        array = np.asarray(value) if not isinstance(value, np.dtype) else np.empty(0, value)
        if array.dtype.hasobject:
            raise _NoKeyError
        content = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
        return ["array", array.dtype.str, list(array.shape), content]
    if isinstance(value, Mapping):
        return ["mapping", [[_plain(key), _plain(held)] for key, held in value.items()]]
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, set | frozenset):
        return ["set", sorted(json.dumps(_plain(held)) for held in value)]
    raise _NoKeyError


@cache
def _names_of(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass; there may be very many values of one."""
    return tuple(each.name for each in fields(kind))


def code_of(kind: type) -> list[str]:
    """The class, and a digest of the file that it is written in; streamseq's own classes have its version."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return [name, "" if file is None else hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()]
    except OSError:
        return [name, ""]
