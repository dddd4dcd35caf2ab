"""Stores of both backends and those in memory are what every store is, and what each of them alone is."""

from pathlib import Path

import numpy as np
import pytest
from support.store_suite import FIELDS, StoreSuite

import streamseq as ss


class DiskStoreSuite(StoreSuite):
    suffix = ""

    def build(self, folder, arrays, attrs):
        address = folder / f"store{self.suffix}"
        with ss.create(address, FIELDS, chunk_bytes=100, shard_bytes=1500) as writer:
            for id, named in arrays.items():
                writer.write(id, attrs=attrs.get(id), **named)
        return ss.open(address)

    def test_address_and_backend(self, store, tmp_path):
        assert Path(store.uri) == tmp_path / f"store{self.suffix}"
        assert store.backend == self.suffix[1:]
        assert ss.open(f"file://{store.uri}").fingerprint == store.fingerprint
        assert ss.open(str(store.uri)).read(0)["x"].shape == (50, 3)

    def test_opening_opens_no_shard(self, store):
        # A store of which nothing but the version file can be read opens all the same.
        for path in Path(store.uri, "shards").rglob("*"):
            if path.is_file():
                path.unlink()
        assert len(ss.open(store.uri)) == 4
        with pytest.raises(ss.CorruptionError, match="lacks"):
            store.read(0)


class TestZarrStore(DiskStoreSuite):
    suffix = ".zarr"


class TestArrowStore(DiskStoreSuite):
    suffix = ".arrow"


class TestMemoryStore(StoreSuite):
    def build(self, folder, arrays, attrs):
        return ss.from_arrays(arrays, fields=FIELDS, attrs=attrs)

    def test_arrays_are_not_copied(self, arrays):
        store = ss.from_arrays(arrays)
        (part,) = store.reader(["x"], 1).slices("x", 3, 5, 9)
        assert np.shares_memory(part, arrays["plant-4"]["x"])
        assert store.backend == "memory"

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="there is none"):
            ss.from_arrays({})
        assert len(ss.from_arrays({}, fields=FIELDS)) == 0
        with pytest.raises(TypeError, match="dict of one array per field"):
            ss.from_arrays({"a": np.zeros(3)})
        with pytest.raises(TypeError, match="id is a str"):
            ss.from_arrays({1: {"x": np.zeros(3)}})
        with pytest.raises(ValueError, match="there is no 'b'"):
            ss.from_arrays({"a": {"x": np.zeros(3)}}, attrs={"b": {}})
        with pytest.raises(ValueError, match="got none of x"):
            ss.from_arrays({"a": {"x": np.zeros(3)}, "b": {}})
        with pytest.raises(TypeError, match="holds float64"):
            ss.from_arrays({"a": {"x": np.zeros(3)}, "b": {"x": np.zeros(3, complex)}})
