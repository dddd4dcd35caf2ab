"""A small store with everything that a store has, and what must come out of each of its versions."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np

import streamseq as ss

CODECS = {"zarr": ("none", "lz4", "zstd", "bitshuffle"), "arrow": ("none", "lz4", "zstd")}


def fields_of(backend):
    """Every codec and kind of field of a backend."""
    kinds = [("float32", (2,)), ("int64", ()), ("uint8", (3,)), ("float64", ())]
    fields = {
        codec: ss.Field(dtype, shape, codec) for codec, (dtype, shape) in zip(CODECS[backend], kinds, strict=False)
    }
    return fields | {"mark": ss.Field("bool")}


class SmallStore:
    """A store of three versions and several shards; what is done to its files can be undone.

    Args:
        backend: Its backend.
    """

    def __init__(self, backend):
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name, f"store.{backend}")
        self._fields = fields_of(backend)
        self._written = 0
        with ss.create(self.root, self._fields, chunk_bytes=200, shard_bytes=1600) as writer:
            writer.write("a", attrs={"n": 1, "é": [None, 2.5]}, **self._make(30))
            writer.append("b", **self._make(7))
            writer.append("nothing", **self._make(0))
        with ss.append(self.root) as writer:
            writer.append("b", **self._make(12))
            writer.write("c", attrs={"site": "north"}, **self._make(25))
        with ss.append(self.root) as writer:
            writer.append("a", **self._make(5))
            writer.write("d", **self._make(3))
        self.versions = {number: contents(ss.open(self.root, version=number)) for number in (1, 2, 3)}
        self.files = {path: path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()}

    def _make(self, steps):
        """Values that are all different, as far as their dtype has so many."""
        arrays = {}
        for name, field in self._fields.items():
            count = steps * int(np.prod(field.shape))
            numbers = np.arange(self._written, self._written + count)
            self._written += count
            values = numbers * 2654435761 >> 7 & 1 if field.dtype.kind == "b" else numbers % 251
            arrays[name] = values.astype(field.dtype).reshape(steps, *field.shape)
        return arrays

    def check(self, verify=False):
        """Whether the newest and the first version read as they were written; False where one is an error of ours.

        A version that is not there any more is not read; one that is read as another one fails the test.

        Args:
            verify: Whether `verify` is asked as well: where it finds nothing wrong, nothing must be.
        """
        whole = True
        for number in (None, 1):
            try:
                store = ss.open(self.root, version=number)
                ok = verify and store.verify(workers=1).ok
            except ss.StreamseqError:
                whole = False
                continue
            try:
                assert contents(store) == self.versions[store.version]
                assert store.statistics is not None
            except ss.StreamseqError:
                assert not ok
                whole = False
        return whole

    def read(self):
        """Read what there is, whatever it is; errors of ours are none."""
        for number in (None, 1):
            with contextlib.suppress(ss.StreamseqError):
                store = ss.open(self.root, version=number)
                store.verify(workers=1)
                contents(store)

    def put_back(self):
        """Undo what was done to the files."""
        for path, content in self.files.items():
            if path.is_dir():
                shutil.rmtree(path)
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def close(self):
        """Remove the store."""
        self._folder.cleanup()


def contents(store):
    """Everything that a reader can ask a store."""
    ids = store.ids.to_pylist()
    found = []
    for index, id in enumerate(ids):
        arrays = {
            name: (values.dtype.str, values.shape, values.tobytes()) for name, values in store.read(index).items()
        }
        found.append((_index(store, id), store.id_of(index), store.length(index), store.attrs(index), arrays))
    stream = ss.StreamDataset(store, lanes=2, window=16, layout="even", fields=["none", "mark"])
    streamed = [(window["none"].numpy().tobytes(), window["mark"].numpy().tobytes()) for window in stream]
    return {"ids": ids, "lengths": store.lengths.tolist(), "found": found, "streamed": streamed} | {
        "fields": dict(store.fields),
        "fingerprint": store.fingerprint,
    }


def _index(store, id):
    try:
        return store.index(id)
    except KeyError:
        return None
