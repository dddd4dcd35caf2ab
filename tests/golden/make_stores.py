"""Writes the stores that every later version of streamseq must read: `python tests/golden/make_stores.py FOLDER`.

FOLDER/format-N is made, N being the format version of the installed streamseq: a zarr and an arrow store of four
versions (created, appended to, compacted, appended to), and what is in each, as an .npz file. They were made once for
each format version and are never made again: see tests/storage/test_golden.py.
"""

import sys
from pathlib import Path

import numpy as np

import streamseq as ss
from streamseq.storage.versions.version import FORMAT_VERSION

FIELDS = {
    "flag": ss.Field("bool"),
    "byte": ss.Field("uint8", (2, 3)),
    "small": ss.Field("int16", codec="none"),
    "big": ss.Field("uint64", codec="lz4"),
    "half": ss.Field("float16", (2,), codec="zstd"),
    "single": ss.Field("float32", (3,)),
    "double": ss.Field("float64", codec="none"),
}


def arrays(rng: np.random.Generator, steps: int) -> dict[str, np.ndarray]:
    made = {}
    for name, field in FIELDS.items():
        size = steps * int(np.prod(field.shape, dtype=int))
        raw = rng.integers(0, 256, size * field.dtype.itemsize, np.uint8)
        values = (raw & 1).view(bool) if field.dtype.kind == "b" else raw.view(field.dtype)
        if field.dtype.kind == "f":
            values = rng.normal(size=size).astype(field.dtype)
            values[:2] = (np.nan, -np.inf)[: len(values[:2])]
        made[name] = values.reshape(steps, *field.shape)
    return made


def write(folder: Path, backend: str) -> None:
    rng = np.random.default_rng(11)
    address = folder / f"store.{backend}"
    held: dict[str, dict[str, np.ndarray]] = {}

    def extend(id: str, steps: int) -> dict[str, np.ndarray]:
        new = arrays(rng, steps)
        before = held.get(id)
        held[id] = new if before is None else {name: np.concatenate([before[name], new[name]]) for name in new}
        return new

    def keep(version: int) -> None:
        named = {f"{number} {name}": array for number, of in enumerate(held.values()) for name, array in of.items()}
        np.savez_compressed(folder / f"{backend}-{version}.npz", ids=np.array(list(held)), **named)

    with ss.create(address, FIELDS, chunk_bytes=200, shard_bytes=4000) as writer:
        writer.write("plant-3", attrs={"site": "nörth", "level": 2}, **extend("plant-3", 41))
        writer.write("nothing", **extend("nothing", 0))
    keep(1)
    with ss.append(address) as writer:
        writer.append("plant-3", **extend("plant-3", 7))
        writer.write("植物", **extend("植物", 19))
        writer.append("plant-3", **extend("plant-3", 2))
    keep(2)
    ss.compact(address)
    keep(3)
    with ss.append(address) as writer:
        writer.append("nothing", **extend("nothing", 5))
    keep(4)
    assert ss.open(address).versions == [1, 2, 3, 4]


if __name__ == "__main__":
    target = Path(sys.argv[1]) / f"format-{FORMAT_VERSION}"
    target.mkdir()
    for each in ("zarr", "arrow"):
        write(target, each)
