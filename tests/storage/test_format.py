"""docs/format.md says enough: a reader written from it alone reads what was written, and finds its fingerprints."""

import numpy as np
import pytest
from support.plain_reader import PlainReader

import streamseq as ss
from streamseq.core.fields import CODECS

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def check(address):
    fingerprint, shards, tables = "", 0, 0
    for number in ss.open(address).versions:
        store, plain = ss.open(address, version=number), PlainReader(address, number)
        assert plain.ids == store.ids.to_pylist()
        assert [plain.attrs[index] for index in range(len(store))] == [
            store.attrs(index) for index in range(len(store))
        ]
        for id in plain.ids:
            wanted = store.read(id)
            got = plain.read(id)
            for name, values in wanted.items():
                assert got[name].dtype == values.dtype
                assert got[name].shape == values.shape
                assert got[name].tobytes() == values.tobytes()
        if plain.document["operation"] == "write":
            fingerprint = plain.fingerprint(fingerprint, shards, tables)
        assert store.fingerprint == plain.document["fingerprint"] == fingerprint
        shards, tables = len(plain.document["shards"]), len(plain.document["tables"])
        assert plain.opens_in_plain_zarr()


CASES = [(backend, codec) for backend in ("zarr", "arrow") for codec in CODECS]
CASES.remove(("arrow", "bitshuffle"))


@pytest.mark.parametrize(("backend", "codec"), CASES)
def test_reader_written_from_the_page_reads_every_dtype_and_codec(tmp_path, backend, codec, make):
    address = tmp_path / f"store.{backend}"
    fields = {dtype: ss.Field(dtype, (3, 2) if number % 2 else (), codec) for number, dtype in enumerate(DTYPES)}
    with ss.create(address, fields, chunk_bytes=60, shard_bytes=2000) as writer:
        writer.write("a", attrs={"é": [1, None]}, **make(fields, 0, 37))
        writer.append("empty", **make(fields, 0, 0))
        writer.append("b", **make(fields, 37, 5))
    check(address)


def test_reader_written_from_the_page_reads_versions_that_grew(address, make):
    fields = {"x": ss.Field("float32", (2,)), "y": ss.Field("bool")}
    for version in range(4):
        with ss.append(address) if version else ss.create(address, fields, chunk_bytes=40, shard_bytes=200) as writer:
            writer.append("a", **make(fields, 100 * version, 7))
            writer.append(f"é{version}", **make(fields, 100 * version + 7, 30))
            writer.append("a", **make(fields, 100 * version + 37, 3))
    check(address)


def test_reader_written_from_the_page_finds_a_flipped_byte(address, make):
    fields = {"x": ss.Field("float32", (2,))}
    with ss.create(address, fields, chunk_bytes=40, shard_bytes=200) as writer:
        writer.write("a", **make(fields, 0, 60))
    (shard, *_) = sorted(path for path in (address / "shards").rglob("*") if path.is_file() and path.suffix != ".json")
    content = np.fromfile(shard, np.uint8)
    content[len(content) // 2] ^= 4
    content.tofile(shard)
    with pytest.raises(AssertionError):
        PlainReader(address).read("a")
