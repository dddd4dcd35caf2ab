"""A file that is not what was adopted is an error, whatever became of it, and never other data."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr

import streamseq as ss

X = np.arange(4000, dtype=np.float32).reshape(1000, 4)


def write_npy(folder, x):
    np.save(folder / "a.npy", x)
    return folder / "a.npy"


def write_gathered_npy(folder, x):
    np.save(folder / "a.npy", np.asfortranarray(x))
    return folder / "a.npy"


def write_npz(folder, x):
    np.savez(folder / "a.npz", x=x)
    return folder / "a.npz"


def table(x):
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4)})


def write_parquet(folder, x):
    pa.parquet.write_table(table(x), folder / "a.parquet", row_group_size=100)
    return folder / "a.parquet"


def write_arrow(folder, x, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(folder / "a.arrow", table(x).schema, options=options) as writer:
        writer.write_table(table(x), max_chunksize=100)
    return folder / "a.arrow"


def write_compressed_arrow(folder, x):
    return write_arrow(folder, x, "zstd")


def write_zarr(folder, x, **options):
    zarr.create_array(folder / "a.zarr", data=x, chunks=(100, 2), overwrite=True, **options)
    return folder / "a.zarr" / ("3.1" if options.get("zarr_format") == 2 else "c/3/1")


def write_zarr_2(folder, x):
    return write_zarr(folder, x, zarr_format=2, chunk_key_encoding={"name": "v2", "separator": "."})


def write_zip(folder, x):
    with zarr.storage.ZipStore(folder / "a.zip", mode="w") as archive:
        zarr.create_array(archive, data=x, chunks=(100, 2))
    return folder / "a.zip"


KINDS = {
    "npy": (write_npy, ss.adopt_npy, "a.npy"),
    "gathered npy": (write_gathered_npy, ss.adopt_npy, "a.npy"),
    "npz": (write_npz, ss.adopt_npy, "a.npz"),
    "parquet": (write_parquet, ss.adopt_parquet, "a.parquet"),
    "arrow": (write_arrow, ss.adopt_arrow, "a.arrow"),
    "compressed arrow": (write_compressed_arrow, ss.adopt_arrow, "a.arrow"),
    "zarr": (write_zarr, ss.adopt_zarr, "a.zarr"),
    "zarr 2": (write_zarr_2, ss.adopt_zarr, "a.zarr"),
    "zip": (write_zip, ss.adopt_zarr, "a.zip"),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """What was decoded is what was adopted: of the data only some must be decoded at once."""
    monkeypatch.setattr("streamseq.storage.adopted.source.CHUNK_BYTES", 1600)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def modify(path):
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    # As after more than the clock's tick.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 5_000_000))


def shorten(path):
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path):
    with path.open("ab") as file:
        file.write(b"more")


def replace(path):
    shutil.copy(path, f"{path}.new")
    modify(path.with_name(f"{path.name}.new"))
    os.replace(f"{path}.new", path)


@pytest.mark.parametrize("change", [modify, shorten, lengthen, replace, os.remove])
@pytest.mark.parametrize("opened", [False, True])
def test_a_changed_file_is_not_read(tmp_path, kind, change, opened):
    write, adopt, name = kind
    path = write(tmp_path, X)
    store = adopt(tmp_path / name)
    if opened:
        # Of the timesteps whose file changes only others, so that what changes was not decoded before.
        store.read(0, 0, 50)
    change(path)
    with pytest.raises(ss.CorruptionError, match="adopt it again"):
        store.read(0, 300)
    stream = ss.StreamDataset(store, lanes=1, window=100)
    with pytest.raises(ss.CorruptionError, match="adopt it again"):
        list(stream)
    with pytest.raises(ss.CorruptionError, match="adopt it again"):
        list(ss.StreamLoader(stream))


def test_what_was_not_touched_is_read_on(tmp_path, kind):
    write, adopt, name = kind
    write(tmp_path, X)
    store = adopt(tmp_path / name)
    assert np.array_equal(store.read(0)["x"], X)


@pytest.mark.parametrize("write", [write_zarr, write_zarr_2])
def test_a_chunk_that_appears_or_goes_is_noticed(tmp_path, write):
    path = write(tmp_path, X)
    os.remove(path)
    store = ss.adopt_zarr(tmp_path / "a.zarr")
    # Zarr has the fill value for a chunk that is not there.
    wanted = X.copy()
    wanted[300:400, 2:] = 0
    assert np.array_equal(store.read(0)["x"], wanted)
    store = ss.adopt_zarr(tmp_path / "a.zarr")
    neighbour = path.with_name(path.name.removesuffix("1") + "0")
    shutil.copy(neighbour, path)
    with pytest.raises(ss.CorruptionError, match=r"changed since it was adopted, in the chunks number 3 along axis 0"):
        store.read(0)
    store = ss.adopt_zarr(tmp_path / "a.zarr")
    os.remove(neighbour)
    with pytest.raises(ss.CorruptionError, match="changed since it was adopted"):
        store.read(0)


def test_the_fingerprint_of_files_notices_a_change_and_not_a_move(tmp_path, kind):
    write, adopt, name = kind
    path = write(tmp_path, X)
    store = adopt(tmp_path / name)
    assert adopt(tmp_path / name).fingerprint == store.fingerprint
    moved = tmp_path / "moved" / name
    moved.parent.mkdir()
    os.rename(tmp_path / name, moved)
    assert adopt(moved).fingerprint == store.fingerprint
    os.rename(moved, tmp_path / name)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert adopt(tmp_path / name).fingerprint != store.fingerprint


def test_the_fingerprint_of_contents_is_that_of_the_values(tmp_path, kind):
    write, adopt, name = kind
    path = write(tmp_path, X)
    store = adopt(tmp_path / name, contents=True)
    os.utime(path, ns=(0, 0))
    assert adopt(tmp_path / name, contents=True).fingerprint == store.fingerprint
    write(tmp_path, np.where(X == 3999, 0, X))
    assert adopt(tmp_path / name, contents=True).fingerprint != store.fingerprint


def test_with_checksums_of_contents_a_change_that_hides_is_found(tmp_path, kind):
    write, adopt, name = kind
    path = write(tmp_path, X)
    store = adopt(tmp_path / name, contents=True)
    before = path.stat()
    other = tmp_path / "other"
    other.mkdir()
    replacement = write(other, np.where(X == 1599, 5, X))
    content = bytearray(replacement.read_bytes())
    content = content[: before.st_size].ljust(before.st_size, b"\0")
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ss.CorruptionError, match=r"other values than were adopted|cannot be read"):
        store.read(0)


def test_the_way_of_reading_is_part_of_the_fingerprint(tmp_path):
    square = np.arange(64).reshape(8, 8)
    np.save(tmp_path / "a.npy", square)
    zarr.create_array(tmp_path / "a.zarr", data=square)
    for adopt, name in ((ss.adopt_npy, "a.npy"), (ss.adopt_zarr, "a.zarr")):
        assert adopt(tmp_path / name).fingerprint != adopt(tmp_path / name, time_axis=1).fingerprint
    pa.parquet.write_table(pa.table({"a": [1, 2], "b": [3, 4]}), tmp_path / "a.parquet")
    found = {ss.adopt_parquet(tmp_path / "a.parquet", columns={"x": name}).fingerprint for name in "ab"}
    assert len(found) == 2
