"""What holds for every store holds for files that somebody else wrote."""

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zarr
from support.store_suite import FIELDS, StoreSuite

import streamseq as ss


class AdoptedSuite(StoreSuite):
    """Files are written to `folder`, and adopted with a fingerprint of their contents."""

    def test_fields_are_those_given(self, store):
        # Files know nothing of codecs.
        assert {name: (each.dtype, each.shape) for name, each in store.fields.items()} == {
            name: (each.dtype, each.shape) for name, each in FIELDS.items()
        }
        assert list(store.fields) == list(FIELDS)
        assert store.chunk_timesteps.keys() == FIELDS.keys()
        assert all(type(steps) is int and steps >= 1 for steps in store.chunk_timesteps.values())
        assert store.decoded_chunk_bytes.keys() == FIELDS.keys()

    def test_contents_are_the_same_however_they_are_stored(self, store, tmp_path, arrays):
        named = {}
        for number, (id, fields) in enumerate(arrays.items()):
            named[id] = {}
            for name, values in fields.items():
                np.save(tmp_path / f"again-{number}-{name}.npy", values)
                named[id][name] = tmp_path / f"again-{number}-{name}.npy"
        attrs = {"plant-3": {"site": "north", "sensors": [1, 2]}}
        assert ss.adopt_npy(named, attrs=attrs, contents=True).fingerprint == store.fingerprint


class TestNpy(AdoptedSuite):
    axis, order, swap = 0, "C", False

    def build(self, folder, arrays, attrs):
        files, axes = {}, {}
        for number, (id, named) in enumerate(arrays.items()):
            files[id] = {}
            for name, values in named.items():
                axes[name] = self.axis if values.ndim > 1 else 0
                values = np.asarray(np.moveaxis(values, 0, axes[name]), order=self.order)
                path = folder / f"{number}-{name}.npy"
                np.save(path, values.astype(values.dtype.newbyteorder()) if self.swap else values)
                files[id][name] = path
        store = ss.adopt_npy(files, axes, attrs=attrs, contents=True)
        assert store.backend == "npy"
        return store


class TestNpyAlongItsLastAxis(TestNpy):
    axis = -1


class TestNpyOfFortranOrder(TestNpy):
    axis, order = 1, "F"


class TestNpyOfTheOtherEndian(TestNpy):
    swap = True


class TestNpz(AdoptedSuite):
    def build(self, folder, arrays, attrs):
        for number, named in enumerate(arrays.values()):
            np.savez(folder / f"{number}.npz", **named)
        files = {id: folder / f"{number}.npz" for number, id in enumerate(arrays)}
        return ss.adopt_npy(files, attrs=attrs, contents=True)


class TestZarr(AdoptedSuite):
    format, shards, axis = 3, None, 0

    def build(self, folder, arrays, attrs):
        groups, axes = {}, {}
        for number, (id, named) in enumerate(arrays.items()):
            group = groups[id] = zarr.open_group(folder / f"{number}.zarr", mode="w", zarr_format=self.format)
            group.attrs.update(attrs.get(id, {}))
            for name, values in named.items():
                axes[name] = self.axis if values.ndim > 1 else 0
                values = np.moveaxis(values, 0, axes[name])
                chunks = tuple(30 if axis == axes[name] % values.ndim else 2 for axis in range(values.ndim))
                shards = self.shards and tuple(self.shards * size for size in chunks)
                group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, shards=shards)[:] = (
                    values
                )
        store = ss.adopt_zarr(groups, axes, fields=list(FIELDS), contents=True)
        assert store.backend == "zarr"
        return store


class TestZarrShards(TestZarr):
    shards = 2


class TestZarrAlongItsLastAxis(TestZarr):
    axis = -1


class TestZarr2(TestZarr):
    format = 2


class TestZarrInAnArchive(AdoptedSuite):
    def build(self, folder, arrays, attrs):
        # The archive has an attribute more than folders have, so it is read without.
        for number, named in enumerate(arrays.values()):
            with zarr.storage.ZipStore(folder / f"{number}.zip", mode="w") as archive:
                group = zarr.open_group(archive, mode="w")
                for name, values in named.items():
                    group.create_array(name, data=values, chunks=(30, *values.shape[1:]))
        files = {id: folder / f"{number}.zip" for number, id in enumerate(arrays)}
        return ss.adopt_zarr(files, fields=list(FIELDS), attrs=attrs, contents=True)


def table_of(arrays):
    columns = {}
    for name, values in arrays.items():
        if name == "marks":
            columns[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(values) if len(values) else None
            kind = pa.fixed_shape_tensor(pa.bool_(), (3,))
            storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind.storage_type)
            columns[name] = pa.ExtensionArray.from_storage(kind, storage)
            continue
        column = pa.array(values.reshape(-1))
        for size in values.shape[:0:-1]:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        columns[name] = column
    return pa.table(columns)


class TestParquet(AdoptedSuite):
    def build(self, folder, arrays, attrs):
        for number, named in enumerate(arrays.values()):
            pa.parquet.write_table(table_of(named), folder / f"{number}.parquet", row_group_size=30)
        files = {id: folder / f"{number}.parquet" for number, id in enumerate(arrays)}
        store = ss.adopt_parquet(files, attrs=attrs, contents=True)
        assert store.backend == "parquet"
        return store


class TestParquetWithASequenceInSeveralFiles(AdoptedSuite):
    def build(self, folder, arrays, attrs):
        files = {}
        for number, (id, named) in enumerate(arrays.items()):
            table = table_of(named)
            files[id] = [folder / f"{number}-{start}.parquet" for start in (0, 7, 40)]
            for path, start, stop in zip(files[id], (0, 7, 40), (7, 40, None), strict=True):
                pa.parquet.write_table(table[start:stop], path, row_group_size=10)
        return ss.adopt_parquet(files, attrs=attrs, contents=True)


class TestArrowFile(AdoptedSuite):
    compression = None
    new = staticmethod(pa.ipc.new_file)

    def build(self, folder, arrays, attrs):
        options = pa.ipc.IpcWriteOptions(compression=self.compression)
        for number, named in enumerate(arrays.values()):
            table = table_of(named)
            with self.new(folder / f"{number}.arrow", table.schema, options=options) as writer:
                writer.write_table(table, max_chunksize=30)
        files = {id: folder / f"{number}.arrow" for number, id in enumerate(arrays)}
        store = ss.adopt_arrow(files, attrs=attrs, contents=True)
        assert store.backend == "arrow"
        return store


class TestCompressedArrowFile(TestArrowFile):
    compression = "zstd"


class TestArrowStream(TestArrowFile):
    new = staticmethod(pa.ipc.new_stream)


class TestCompressedArrowStream(TestArrowStream):
    compression = "lz4"


class TestFeather(AdoptedSuite):
    def build(self, folder, arrays, attrs):
        for number, named in enumerate(arrays.values()):
            pa.feather.write_feather(table_of(named), folder / f"{number}.feather", chunksize=30)
        files = {id: folder / f"{number}.feather" for number, id in enumerate(arrays)}
        return ss.adopt_arrow(files, attrs=attrs, contents=True)


class TestTablesInMemory(AdoptedSuite):
    def build(self, folder, arrays, attrs):
        tables = {id: [table_of(named)[:20], table_of(named)[20:]] for id, named in arrays.items()}
        return ss.adopt_arrow(tables, attrs=attrs)


@pytest.mark.parametrize("contents", [False, True])
def test_what_is_pickled_knows_what_was_adopted(tmp_path, contents, make, same):
    import pickle

    arrays = make(FIELDS, 0, 40)
    np.savez(tmp_path / "a.npz", **arrays)
    store = ss.adopt_npy(tmp_path / "a.npz", contents=contents)
    copy = pickle.loads(pickle.dumps(store))
    same(copy.read("a"), arrays)
    np.savez(tmp_path / "a.npz", **make(FIELDS, 1, 40))
    with pytest.raises(ss.CorruptionError, match=r"a\.npz has changed since it was adopted"):
        copy.read("a")
