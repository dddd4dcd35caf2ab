"""How shards are cut and encoded: what every task that writes to one store must agree about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamseq.core.fields import Field, check_fields

BACKENDS = ("zarr", "arrow")
CHUNK_BYTES = 1 << 20
SHARD_BYTES = 64 << 20
# blosc frames end at 2 GiB, and what metadata can make a reader allocate must end somewhere.
MAX_CHUNK_BYTES = 1 << 30
# Chunks of a shard, all fields together: where they lie is held in memory while one is read.
MAX_SHARD_CHUNKS = 1 << 18


def timesteps_of_bytes(num_bytes: int, field: Field) -> int:
    """The number of whole timesteps of a field in so many decoded bytes, at least one."""
    return max(1, num_bytes // field.step_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """How the shards of a store are cut and encoded; picklable, so that tasks elsewhere write the same shards.

    Args:
        backend: "zarr" or "arrow".
        fields: The fields by name, as the user gave them.
        codecs: The codec of each field, chosen where the user gave none.
        chunk_timesteps: Timesteps a chunk, by field.
        shard_timesteps: Timesteps of a full shard.
    """

    backend: str
    fields: Mapping[str, Field]
    codecs: Mapping[str, str]
    chunk_timesteps: Mapping[str, int]
    shard_timesteps: int


def plan_layout(
    fields: Mapping[str, Field],
    backend: str,
    chunk_bytes: int | None = None,
    shard_bytes: int | None = None,
) -> ShardLayout:
    """Decide how the shards of a new store are cut and encoded.

    Args:
        fields: The fields by name.
        backend: "zarr" or "arrow".
        chunk_bytes: Decoded bytes a chunk of one field; None: 1 MiB. A larger timestep is a chunk of its own.
        shard_bytes: Decoded bytes a shard, all fields together; None: 64 MiB. Fewer where chunks are so small that a
            shard would have more than 262,144.

    Raises:
        TypeError: A field is not a `Field`, or a number of bytes not an int.
        ValueError: The backend has another name, a field cannot be stored in it, or a number of bytes is out of range.

    Example:
        >>> layout = plan_layout({"x": Field("float32", (7,))}, "zarr")
        >>> layout.codecs["x"], layout.chunk_timesteps["x"], layout.shard_timesteps
        ('bitshuffle', 37449, 2396736)
    """
    if backend not in BACKENDS:
        raise ValueError(f"a store's backend is 'zarr' or 'arrow', got {backend!r}")
    fields = check_fields(fields)
    if "attrs" in fields:
        raise ValueError("a field is not named 'attrs', which names the attributes of a sequence: rename it")
    chunk_bytes = _positive("chunk_bytes", CHUNK_BYTES if chunk_bytes is None else chunk_bytes)
    shard_bytes = _positive("shard_bytes", SHARD_BYTES if shard_bytes is None else shard_bytes)
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise ValueError(f"chunk_bytes is at most {MAX_CHUNK_BYTES}, got {chunk_bytes}")
    for name, field in fields.items():
        if field.step_bytes > MAX_CHUNK_BYTES:
            raise ValueError(
                f"a timestep has at most {MAX_CHUNK_BYTES} bytes, field {name!r} has {field.step_bytes}: split it"
            )
    shard_timesteps = max(1, shard_bytes // sum(field.step_bytes for field in fields.values()))
    of_bytes = {name: timesteps_of_bytes(chunk_bytes, field) for name, field in fields.items()}
    # Each field can have one chunk that is not full.
    full_chunks = max(1, MAX_SHARD_CHUNKS - len(fields))
    shard_timesteps = min(shard_timesteps, max(1, int(full_chunks / sum(1 / steps for steps in of_bytes.values()))))
    chunk_timesteps = {name: min(steps, shard_timesteps) for name, steps in of_bytes.items()}
    # The field with the largest chunks then has no short chunk at the end of a full shard.
    shard_timesteps -= shard_timesteps % max(chunk_timesteps.values())
    return ShardLayout(
        backend=backend,
        fields=fields,
        codecs={name: _codec(name, field, backend) for name, field in fields.items()},
        chunk_timesteps=chunk_timesteps,
        shard_timesteps=shard_timesteps,
    )


def _codec(name: str, field: Field, backend: str) -> str:
    if field.codec == "bitshuffle" and backend == "arrow":
        raise ValueError(
            f"codec 'bitshuffle' is for zarr, field {name!r} is to be stored in arrow: use 'lz4' or 'zstd'"
        )
    if field.codec is not None:
        return field.codec
    if field.dtype.kind == "f":
        return "bitshuffle" if backend == "zarr" else "lz4"
    return "zstd"


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is at least 1, got {value}")
    return value
