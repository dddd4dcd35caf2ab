"""Bad bytes are found: whatever is flipped, cut off or invented, it is an error or it changes nothing."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from support.mending import MANIFESTS, mend_manifest, seal

import streamseq as ss
from streamseq.storage.checksum import crc32c
from streamseq.storage.versions.rows import row_index
from streamseq.storage.versions.version import to_hex

FIELDS = {
    "x": ss.Field("float32", (2,)),
    "y": ss.Field("int64", codec="none"),
    "b": ss.Field("bool"),
    "z": ss.Field("float64", codec="lz4"),
}


@pytest.fixture
def store(address, make):
    with ss.create(address, FIELDS, chunk_bytes=200, shard_bytes=4000) as writer:
        writer.write("a", attrs={"n": 1}, **make(FIELDS, 0, 100))
        writer.append("b", **make(FIELDS, 100, 20))
        writer.append("a", **make(FIELDS, 120, 30))
    return address


def read_all(address):
    store = ss.open(address)
    return {id: (store.read(id), store.attrs(id)) for id in store.ids.to_pylist()}


def test_flipped_byte_is_an_error_or_changes_nothing(store, same):
    wanted = read_all(store)
    found = 0
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        content = path.read_bytes()
        # Every byte of small files, a few of the bytes of others.
        for position in range(0, len(content), max(1, len(content) // 20)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            try:
                got = read_all(store)
            except ss.StoreError:
                found += 1
            else:
                for id, (arrays, attrs) in wanted.items():
                    same(got[id][0], arrays)
                    assert got[id][1] == attrs
        path.write_bytes(content)
    assert found > 100
    assert read_all(store).keys() == wanted.keys()


def chunk_file(store, name, shard):
    folder = store / "shards" / ss.open(store).snapshot.shards[shard].id
    if store.suffix == ".arrow":
        return folder / f"{name}.arrow"
    return folder.joinpath(name, "c", *["0"] * (1 + len(FIELDS[name].shape)))


@pytest.mark.parametrize("name", FIELDS)
def test_error_names_store_shard_field_and_chunk(store, make, name):
    path = chunk_file(store, name, 0)
    content = bytearray(path.read_bytes())
    offset = 3 if store.suffix == ".zarr" else len(pa.ipc.open_file(path).schema.serialize()) + 12
    content[offset] ^= 16
    path.write_bytes(content)
    shard = ss.open(store).snapshot.shards[0].id
    message = f"store {store}, shard {shard}, field '{name}', chunk 0 fails its checksum"
    with pytest.raises(ss.CorruptionError, match=message):
        ss.open(store).read("a", 0, 1, fields=[name])
    # What does not lie in that chunk is read all the same.
    steps = ss.open(store).chunk_timesteps[name]
    if steps < 100:
        read = ss.open(store).read("a", steps, 100, fields=[name])
        assert np.array_equal(read[name], make(FIELDS, 0, 100)[name][steps:])


@pytest.mark.parametrize("name", FIELDS)
def test_cut_and_lengthened_files_are_found(store, name):
    path = chunk_file(store, name, 0)
    content = path.read_bytes()
    for other in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
        path.write_bytes(other)
        with pytest.raises(ss.CorruptionError, match=f"field '{name}' has {len(other)} bytes"):
            ss.open(store).read("a")


def manifest_of(store, shard):
    """The path of the manifest of a shard, the document it is in, and the manifest."""
    name = "zarr.json" if store.suffix == ".zarr" else "shard.json"
    path = store / "shards" / shard / name
    document = manifest = json.loads(path.read_bytes())
    for key in MANIFESTS[name]:
        manifest = manifest[key]
    return path, document, manifest


def test_manifest_that_names_the_chunks_in_another_order_is_found(store):
    path, document, manifest = manifest_of(store, ss.open(store).snapshot.shards[0].id)
    assert len(manifest["chunks"]["x"]) > 1
    manifest["chunks"]["x"].reverse()
    path.write_text(json.dumps(document))
    with pytest.raises(ss.CorruptionError, match="has a manifest with crc32c"):
        ss.open(store).read("a")


@pytest.fixture
def two_shards(address):
    """Two shards of the same sizes, every chunk of which is intact in the place of the other's."""
    fields = {"x": ss.Field("int64", codec="none"), "y": ss.Field("int64", codec="none")}
    with ss.create(address, fields, chunk_bytes=80, shard_bytes=800) as writer:
        writer.write("a", x=np.arange(100), y=np.arange(100, 200))
    first, second = ss.open(address).snapshot.shards
    return address, first.id, second.id


def swap(one, other):
    one_content, other_content = one.read_bytes(), other.read_bytes()
    assert one_content != other_content
    one.write_bytes(other_content)
    other.write_bytes(one_content)


def test_intact_files_of_another_shard_are_found(two_shards):
    store, first, second = two_shards
    for path in sorted(path for path in (store / "shards" / first).rglob("*") if path.is_file()):
        other = store / "shards" / second / path.relative_to(store / "shards" / first)
        # Metadata that two shards have alike is as good as its own.
        if path.read_bytes() == other.read_bytes():
            continue
        swap(path, other)
        with pytest.raises(ss.CorruptionError, match=r"checksum|crc32c"):
            read_all(store)
        swap(path, other)
    shutil.move(store / "shards" / first, store / "held")
    shutil.move(store / "shards" / second, store / "shards" / first)
    shutil.move(store / "held", store / "shards" / second)
    with pytest.raises(ss.CorruptionError, match="has a manifest with crc32c"):
        ss.open(store).read("a")


def test_intact_file_of_another_field_is_found(two_shards):
    store, first, _ = two_shards
    folder = store / "shards" / first
    if store.suffix == ".arrow":
        swap(folder / "x.arrow", folder / "y.arrow")
    else:
        swap(folder / "x" / "c" / "0", folder / "y" / "c" / "0")
    with pytest.raises(ss.CorruptionError, match="checksum"):
        ss.open(store).read("a")


def test_intact_chunk_in_place_of_another_one_is_found(two_shards):
    store, first, _ = two_shards
    path, _, manifest = manifest_of(store, first)
    path = path.parent / ("x.arrow" if store.suffix == ".arrow" else "x/c/0")
    (one, size, _), (other, other_size, _) = manifest["chunks"]["x"][:2]
    # With the crc32c behind it that Zarr has.
    size += 4 * (store.suffix == ".zarr")
    assert size == other_size + 4 * (store.suffix == ".zarr")
    content = bytearray(path.read_bytes())
    content[one : one + size], content[other : other + size] = (
        content[other : other + size],
        content[one : one + size],
    )
    path.write_bytes(content)
    with pytest.raises(ss.CorruptionError, match="chunk 0 fails its checksum"):
        ss.open(store).read("a")


@pytest.mark.parametrize(("what", "message"), [("shards", "lacks"), ("tables", "is missing")])
def test_missing_files_are_found(store, what, message):
    shutil.rmtree(store / what)
    with pytest.raises(ss.CorruptionError, match=message):
        read_all(store)


def rewrite(path, change):
    """Change a version file as someone would who also mends its checksum."""
    document = json.loads(path.read_bytes())
    change(document)
    seal(path, document)


def change(*keys, to):
    def apply(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return apply


HOSTILE = {
    "shard outside the store": change("shards", 0, "id", to="../../../../etc/x-000000"),
    "table outside the store": change("tables", 0, "pieces", "file", to="../x.pieces.arrow"),
    "table of the other kind": change("tables", 0, "pieces", "file", to="0123456789abcdef.sequences.arrow"),
    "field outside the store": change("fields", 0, "name", to="../x"),
    "another version": change("version", to=2),
    "negative timesteps": change("shards", 0, "timesteps", to=-1),
    "very many timesteps": change("shards", 0, "timesteps", to=10**18),
    "no whole number": change("shards", 0, "timesteps", to=1.5),
    "a bool": change("shards", 0, "timesteps", to=True),
    "very large chunks": change("fields", 0, "chunk_timesteps", to=10**15),
    "very large steps": change("fields", 0, "shape", to=[10**12]),
    "a dtype with pointers": change("fields", 0, "dtype", to="object"),
    "a codec of no such name": change("fields", 0, "stored_codec", to="pickle"),
    "a codec that is a list": change("fields", 0, "codec", to=["lz4"]),
    "a backend of no such name": change("backend", to="hdf5"),
    "no shards": change("shards", to=[]),
    "shards of no list": change("shards", to={}),
    "shard of no dict": change("shards", 0, to=3),
    "no fields": change("fields", to=[]),
    "more sequences than tables": change("sequences", to=10**12),
    "no fingerprint": change("fingerprint", to="00"),
    "fields missing": lambda document: document.pop("fields"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_invented_metadata_is_refused_before_it_is_used(store, case):
    rewrite(store / "versions" / "00000001.json", HOSTILE[case])
    with pytest.raises(ss.CorruptionError, match=r"00000001\.json breaks the format"):
        ss.open(store)


def test_larger_shards_than_there_are_are_refused(store):
    def grow(document):
        document["shards"][0]["timesteps"] = document["shard_timesteps"] = 10**15
        document["timesteps"] = 10**15 + sum(shard["timesteps"] for shard in document["shards"][1:])

    rewrite(store / "versions" / "00000001.json", grow)
    with pytest.raises(ss.CorruptionError):
        ss.open(store).read("a")


def test_version_files_that_are_none(store):
    path = store / "versions" / "00000001.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"timesteps"', b'"Timesteps"', 1))
    with pytest.raises(ss.CorruptionError, match="crc32c"):
        ss.open(store)
    path.write_bytes(content[:-3])
    with pytest.raises(ss.CorruptionError, match="is not JSON"):
        ss.open(store)
    path.write_bytes(b"[]")
    with pytest.raises(ss.StoreError, match="does not describe a streamseq store"):
        ss.open(store)
    path.write_bytes(content.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(ss.StoreError, match="format version 2, this software reads 1: install"):
        ss.open(store)


PIECES = {
    "sequence that is none": [[2, 0, 150]],
    "negative row": [[0, -1, 150]],
    "row beyond the shards": [[0, 1, 150]],
    "empty piece": [[0, 0, 0]],
    "sum that wraps": [[0, 2**62, 2**62], [0, 0, 150]],
    "too few timesteps": [[0, 0, 149]],
}


@pytest.mark.parametrize("case", PIECES)
def test_pieces_that_do_not_lie_in_the_shards_are_refused(store, case):
    def mend(document):
        entry = document["tables"][0]["pieces"]
        batch = pa.record_batch(
            [pa.array(column, pa.int64()) for column in zip(*PIECES[case], strict=True)],
            schema=pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("sequence", "row", "length")]),
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = sink.getvalue().to_pybytes()
        (store / "tables" / entry["file"]).write_bytes(content)
        entry |= {"rows": batch.num_rows, "bytes": len(content), "crc32c": to_hex(crc32c(content))}

    rewrite(store / "versions" / "00000001.json", mend)
    with pytest.raises(ss.CorruptionError, match="break the format: "):
        ss.open(store).read("a")


@pytest.mark.parametrize(
    ("pieces", "num_timesteps"),
    [([[0, 0, 2**62]] * 5, 2**62), ([[0, 2**62, 2**62], [0, 0, 1]], 2**62 + 1)],
)
def test_pieces_whose_sums_wrap_are_refused(pieces, num_timesteps):
    with pytest.raises(ValueError, match="timesteps"):
        row_index(np.array(pieces), 1, num_timesteps)


def test_chunk_that_decodes_to_another_size_is_refused(tmp_path, make):
    from numcodecs import blosc, zstd

    fields = {"x": ss.Field("float64", codec="lz4"), "y": ss.Field("int64", codec="zstd")}
    with ss.create(tmp_path / "s.zarr", fields) as writer:
        writer.write("a", **make(fields, 0, 100))
    shard = ss.open(tmp_path / "s.zarr").snapshot.shards[0].id
    for name, encode in (
        ("x", lambda raw: blosc.compress(raw, b"lz4", 5, 0)),
        ("y", lambda raw: zstd.compress(raw, 3)),
    ):
        path = tmp_path / "s.zarr" / "shards" / shard / name / "c" / "0"
        size = path.stat().st_size
        # As long as the file was, with all checksums right, and a chunk of one timestep more.
        chunk = encode(np.zeros(101))
        filler = bytes(size - len(chunk) - 4 - 4)
        content = chunk + crc32c(chunk).to_bytes(4, "little") + filler + crc32c(filler).to_bytes(4, "little")
        assert len(content) == size
        path.write_bytes(content)

        def mend(manifest, name=name, chunk=chunk, filler=filler):
            manifest["chunks"][name] = [[0, len(chunk), to_hex(crc32c(chunk))]]
            manifest["ends_crc32c"][name] = to_hex(crc32c(filler))

        mend_manifest(tmp_path / "s.zarr", 0, mend)
        with pytest.raises(ss.CorruptionError, match="chunk 0 decodes to 808 bytes and was written with 800"):
            ss.open(tmp_path / "s.zarr").read("a", fields=[name])
