"""Damaged files: an error of ours or what the file now says, and with checksums of contents never other data."""

import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr

import streamseq as ss

X = np.arange(300, dtype=np.float32).reshape(100, 3)
ON = np.arange(100) % 3 == 0
IDS = ["a"] * 40 + ["b"] * 30 + ["a"] * 30


def table(dictionary=False):
    ids = pa.array(IDS)
    x = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 3)
    return pa.table({"id": ids.dictionary_encode() if dictionary else ids, "x": x, "on": ON})


def write_ipc(path, new, compression, dictionary=False):
    with new(
        path,
        table().schema if not dictionary else table(True).schema,
        options=pa.ipc.IpcWriteOptions(compression=compression),
    ) as writer:
        writer.write_table(table(dictionary), max_chunksize=30)


def write_zarr(folder, **options):
    group = zarr.open_group(folder, mode="w", zarr_format=options.pop("zarr_format", 3))
    group.create_array("x", data=X, chunks=(30, 2), **options)
    group.create_array("on", data=ON, chunks=(30,))


def write_npy(folder):
    np.save(folder / "a.npy", X)
    np.save(folder / "t.npy", np.asfortranarray(X))
    np.savez(folder / "z.npz", x=X)


KINDS = {
    "npy": (write_npy, ss.adopt_npy, {}),
    "zarr": (lambda folder: write_zarr(folder, shards=(60, 2)), ss.adopt_zarr, {}),
    "zarr 2": (lambda folder: write_zarr(folder, zarr_format=2), ss.adopt_zarr, {}),
    "parquet": (
        lambda folder: pa.parquet.write_table(table(), folder / "a.parquet", row_group_size=30),
        ss.adopt_parquet,
        {"sequence_column": "id"},
    ),
    **{
        f"{name} {compression} {dictionary}": (
            lambda folder, new=new, compression=compression, dictionary=dictionary: write_ipc(
                folder / "a.arrow", new, compression, dictionary
            ),
            ss.adopt_arrow,
            {"sequence_column": "id"},
        )
        for name, new in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream))
        for compression, dictionary in ((None, False), ("lz4", True))
    },
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    write, adopt, options = KINDS[request.param]
    write(tmp_path)
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    return lambda **more: adopt(tmp_path, **options, **more), paths


def damaged(content, dice):
    """The content with a bit, a byte or a number replaced, or cut off."""
    content = bytearray(content)
    at = dice.randrange(len(content))
    way = dice.randrange(4)
    if way == 0:
        content[at] ^= 1 << dice.randrange(8)
    elif way == 1:
        content[at] = dice.randrange(256)
    elif way == 2:
        number = dice.choice([0, -1, 2**31 - 1, 2**62, 1_000_000]).to_bytes(8, "little", signed=True)
        content[at : at + 8] = number[: len(content) - at]
    else:
        del content[at:]
    return bytes(content)


def read_all(store):
    return [store.read(number) for number in range(min(len(store), 5))]


# The dice are not thrown anew each time: what breaks pyarrow itself should break a change of ours, not a day.
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_an_error_of_ours_or_is_read(kind, seed):
    adopt, paths = kind
    dice = random.Random(seed)
    errors = []
    for _ in range(30):
        path = dice.choice(paths)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, dice))
        try:
            read_all(adopt())
        except ss.StreamseqError as error:
            errors.append(str(error))
        path.write_bytes(whole)
    assert errors
    assert not any("\n" in error for error in errors)
    assert len(read_all(adopt())) >= 1


def test_with_checksums_of_contents_damage_that_hides_never_gives_other_data(kind, same):
    adopt, paths = kind
    dice = random.Random(1)
    errors = 0
    wanted = read_all(adopt())
    for number in range(40):
        store = adopt(contents=True)
        path = dice.choice(paths)
        whole, before = path.read_bytes(), path.stat()
        path.write_bytes(damaged(whole, dice).ljust(len(whole), b"\0"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        try:
            for found, values in zip(read_all(store), wanted, strict=True):
                same(found, values)
        except ss.CorruptionError:
            errors += 1
        path.write_bytes(whole)
        assert number < 39 or errors
