"""Stores that somebody made on purpose: an error or the right data, and nothing outside the store is touched."""

import json
import os
import resource
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.mending import MANIFESTS, mend_manifest, mend_table, mend_version

import streamseq as ss
from streamseq.storage.shards.zarr_shard import array_document

# Nothing is waited for.
pytestmark = pytest.mark.timeout(120)

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none")}


@pytest.fixture
def store(address, make):
    with ss.create(address, FIELDS, chunk_bytes=200, shard_bytes=4000) as writer:
        writer.write("a", attrs={"n": 1}, **make(FIELDS, 0, 100))
    return address


@contextmanager
def little_memory():
    """What is done inside cannot have much more memory than there is now."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def read_all(store):
    with little_memory():
        opened = ss.open(store)
        everything = [(opened.attrs(id), opened.read(id)) for id in opened.ids.to_pylist()]
        assert opened.statistics is not None
        return everything


def files(store):
    return sorted(path for path in store.rglob("*") if path.is_file())


def used(store):
    """The files that a reader uses."""
    mere_groups = {path / "zarr.json" for path in (store, *(store / name for name in os.listdir(store)))}
    return [path for path in files(store) if path not in mere_groups]


def is_manifest(path):
    return path.parent.parent.name == "shards" and path.name in MANIFESTS


def test_nothing_but_plain_files_is_opened(store):
    sockets = []
    for path in used(store):
        content = path.read_bytes()
        for what in ("pipe", "folder", "socket", "device", "link"):
            path.unlink()
            if what == "pipe":
                os.mkfifo(path)
            elif what == "folder":
                path.mkdir()
            elif what == "socket":
                held = socket.socket(socket.AF_UNIX)
                sockets.append(held)
                # Addresses of sockets are short.
                there = os.getcwd()
                os.chdir(path.parent)
                held.bind(path.name)
                os.chdir(there)
            elif what == "device":
                path.symlink_to("/dev/zero")
            else:
                (store.parent / "outside").write_bytes(content)
                path.symlink_to(store.parent / "outside")
            with pytest.raises(ss.CorruptionError, match="plain files"):
                read_all(store)
            path.rmdir() if what == "folder" else path.unlink()
            path.write_bytes(content)
    read_all(store)
    for held in sockets:
        held.close()


def test_no_link_to_a_folder_is_followed(store, tmp_path):
    folders = sorted({parent for path in used(store) for parent in path.parents if store in parent.parents})
    assert len(folders) > 3
    for folder in folders:
        shutil.move(folder, tmp_path / "moved")
        folder.symlink_to(tmp_path / "moved")
        with pytest.raises(ss.CorruptionError, match="link, which is not followed"):
            read_all(store)
        folder.unlink()
        folder.write_bytes(b"")
        with pytest.raises(ss.StoreError):
            read_all(store)
        folder.unlink()
        shutil.move(tmp_path / "moved", folder)
    read_all(store)


def test_the_root_may_be_a_link(store, tmp_path):
    (tmp_path / "link").symlink_to(store)
    read_all(tmp_path / "link")


def document_with(text):
    """A version document with a value that JSON has but no version has."""
    return lambda content: content.replace(b'"job"', b'"more": %s, "job"' % text, 1)


BOMBS = {
    "nested lists": lambda content: b"[" * 10**6,
    "nested objects": lambda content: b'{"a":' * 10**6,
    "nested inside": document_with(b"[" * 10**5 + b"]" * 10**5),
    "nested as deep as can be read": document_with(b"[" * 900 + b"]" * 900),
    "a number of many digits": document_with(b"1" * 10**6),
    "a number that is infinite": document_with(b"1e999999"),
    "not a number": document_with(b"NaN"),
    "infinity": document_with(b"-Infinity"),
    "a name twice": lambda content: content.replace(b'"job"', b'"job": "one", "job"', 1),
    "a name twice, deep": document_with(b'{"a": {"b": 1, "b": 2}}'),
    "other encoding": lambda content: content.decode().encode("utf-16"),
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "no text": lambda content: b"\xff" * 100,
    "nothing": lambda content: b"",
    "a null": lambda content: b"null",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_json_breaks_the_reader(store, bomb):
    for path in used(store):
        if path.suffix != ".json":
            continue
        content = path.read_bytes()
        # What the bombs are put before is in every document then.
        named = content if path.parent.name == "versions" else content.replace(b"{", b'{"job": "none",', 1)
        mended = BOMBS[bomb](named)
        assert mended != named
        path.write_bytes(mended)
        if is_manifest(path):
            mend_version(store, ("shards", 0, "manifest_crc32c"), mended)
        if bomb == "nested as deep as can be read":
            with suppress(ss.StoreError):
                read_all(store)
        else:
            with pytest.raises(ss.StoreError):
                read_all(store)
        path.write_bytes(content)
        if is_manifest(path):
            mend_version(store, ("shards", 0, "manifest_crc32c"), content)
    read_all(store)


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "3", '{"a": NaN}', "{", '{"a": 1, "a": 2}', ""])
def test_attributes_that_are_none(store, text):
    mend_table(store, "sequences", lambda batch: [batch.column(0), pa.array([text], pa.large_string())])
    opened = ss.open(store)
    with little_memory(), pytest.raises(ss.CorruptionError, match="the attributes of sequence 0"):
        opened.attrs("a")


def test_text_that_utf_8_cannot_hold_is_refused(store):
    path = store / "versions" / "00000001.json"
    document = json.loads(path.read_bytes())
    mend_version(store, ("job",), None, to="\ud800")
    with pytest.raises(ss.CorruptionError, match="is not text"):
        ss.open(store)
    mend_version(store, ("job",), None, to=document["job"])
    read_all(store)


def test_large_files_are_not_read(store):
    for path in used(store):
        content = path.read_bytes()
        # Sparse: it takes no place on the disk.
        with path.open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(ss.StoreError):
            read_all(store)
        path.write_bytes(content)


NUMBERS = {
    "chunk beyond the file": lambda chunks: [[10**15, *chunks[0][1:]], *chunks[1:]],
    "chunk that is too large": lambda chunks: [[chunks[0][0], 10**12, chunks[0][2]], *chunks[1:]],
    "a sum that wraps": lambda chunks: [[2**63 - 1, 2**63 - 1, chunks[0][2]], *chunks[1:]],
    "negative": lambda chunks: [[-1, *chunks[0][1:]], *chunks[1:]],
    "no whole number": lambda chunks: [[0.5, *chunks[0][1:]], *chunks[1:]],
    "a bool": lambda chunks: [[chunks[0][0], True, chunks[0][2]], *chunks[1:]],
    "an empty chunk": lambda chunks: [[chunks[0][0], 0, chunks[0][2]], *chunks[1:]],
    "too few": lambda chunks: chunks[:-1],
    "too many": lambda chunks: [*chunks, chunks[-1]],
    "none": lambda chunks: [],
    "one twice": lambda chunks: [chunks[0], *chunks[:-1]],
    "no list": lambda chunks: {"a": chunks},
    "entries that are none": lambda chunks: ["abc"] * len(chunks),
    "short entries": lambda chunks: [entry[:2] for entry in chunks],
    "no checksum": lambda chunks: [[*entry[:2], "xyz"] for entry in chunks],
    "a number for a checksum": lambda chunks: [[*entry[:2], 1] for entry in chunks],
}


@pytest.mark.parametrize("case", NUMBERS)
def test_invented_manifests_are_refused(store, case):
    def change(manifest):
        manifest["chunks"]["x"] = NUMBERS[case](manifest["chunks"]["x"])

    mend_manifest(store, 0, change)
    with pytest.raises(ss.CorruptionError, match="manifest that breaks the format"):
        read_all(store)


def test_sizes_that_the_bytes_cannot_hold_are_refused(tmp_path, backend):
    """A shard of a petabyte, in a file of a few hundred bytes whose every checksum is right."""
    address = tmp_path / f"s.{backend}"
    with ss.create(address, {"x": ss.Field("uint8", codec="lz4")}) as writer:
        writer.write("a", x=np.zeros(100, np.uint8))
    steps = 1 << 30

    def change(manifest):
        manifest["chunks"]["x"] = [[offset, size, crc] for offset, size, crc in manifest["chunks"]["x"]] * 1000

    mend_manifest(address, 0, change)
    for path in (address / "shards").glob("*/x/zarr.json"):
        array = array_document("x", ss.Field("uint8"), "lz4", 1000 * steps, steps)
        path.write_text(json.dumps(array))
    mend_version(address, ("fields", 0, "chunk_timesteps"), None, to=steps)
    for keys in (("shard_timesteps",), ("timesteps",), ("shards", 0, "timesteps")):
        mend_version(address, keys, None, to=1000 * steps)
    mend_table(address, "pieces", lambda batch: [batch.column(0), batch.column(1), pa.array([1000 * steps])])
    with pytest.raises(ss.CorruptionError, match="bytes for 1073741824 of values"):
        read_all(address)


METADATA = {
    "large chunks": lambda array: array["codecs"][0]["configuration"].update(chunk_shape=[10**12, 2]),
    "very many chunks": lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[1, 1]),
    "very many small chunks": lambda array: array["codecs"][0]["configuration"].update(chunk_shape=[1, 1]),
    "a chunk of nothing": lambda array: array["codecs"][0]["configuration"].update(chunk_shape=[0, 2]),
    "another shape": lambda array: array.update(shape=[10**12, 2]),
    "another dtype": lambda array: array.update(data_type="float64"),
    "an unknown codec": lambda array: array.update(codecs=[{"name": "pickle"}]),
    "a codec that loads code": lambda array: array.update(
        codecs=[{"name": "numcodecs.pickle", "configuration": {}}, {"name": "bytes"}]
    ),
    "codecs that are none": lambda array: array.update(codecs="bytes"),
    "no codecs": lambda array: array.pop("codecs"),
    "shards in shards": lambda array: array["codecs"][0]["configuration"].update(
        codecs=[json.loads(json.dumps(array["codecs"][0]))]
    ),
    "chunks elsewhere": lambda array: array.update(chunk_key_encoding={"name": "../..", "configuration": {}}),
    "other byte order": lambda array: array["codecs"][0]["configuration"]["codecs"][0].update(
        configuration={"endian": "big"}
    ),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_arrays_is_not_believed(tmp_path, make, case):
    fields = {"x": ss.Field("float32", (2,))}
    with ss.create(tmp_path / "s.zarr", fields, chunk_bytes=200) as writer:
        writer.write("a", **make(fields, 0, 100))
    (path,) = (tmp_path / "s.zarr" / "shards").glob("*/x/zarr.json")
    array = json.loads(path.read_bytes())
    METADATA[case](array)
    path.write_text(json.dumps(array))
    with pytest.raises(ss.CorruptionError):
        read_all(tmp_path / "s.zarr")


def test_a_version_file_that_no_reader_would_take_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr("streamseq.storage.versions.version.MAX_VERSION_BYTES", 1000)
    with (
        pytest.raises(ss.StoreError, match="at most 1000 bytes"),
        ss.create(tmp_path / "s.zarr", {"x": ss.Field("uint8")}, shard_bytes=1) as writer,
    ):
        writer.write("a", x=np.zeros(10, np.uint8))
    assert not (tmp_path / "s.zarr").exists()


def test_shards_have_no_more_chunks_than_a_reader_takes(tmp_path):
    with ss.create(tmp_path / "s.arrow", {"x": ss.Field("uint8")}, chunk_bytes=1, shard_bytes=1 << 40) as writer:
        writer.write("a", x=np.zeros(3, np.uint8))
    assert ss.open(tmp_path / "s.arrow").layout.shard_timesteps == (1 << 18) - 1
