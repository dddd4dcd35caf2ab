"""Files as sequences of bytes: every byte once, in order, under its id, for any partitions and workers."""

import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines.text import TextSource

import streamseq as ss
from streamseq.etl import Piece, Skipped, SourceError

MIB = 1 << 20


def noise(size, seed):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def write(folder, contents):
    for name, content in contents.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_all(source, target):
    """The bytes of every id, and what was skipped, as a job would see them."""
    read, skipped, last = {}, [], None
    for partition in pickle.loads(pickle.dumps(source.partitions(target))):
        num_bytes, items = 0, list(source.read(partition))
        first = next((item.id for item in items if isinstance(item, Piece)), None)
        assert partition.continues == (first if first in read else None)
        for item in items:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            assert isinstance(item, Piece)
            assert item.id == last or item.id not in read, "pieces of one id follow each other"
            assert item.arrays["x"].dtype == np.uint8
            last = item.id
            read[last] = read.get(last, b"") + item.arrays["x"].tobytes()
            num_bytes += len(item.arrays["x"])
        assert num_bytes == partition.num_bytes
        assert num_bytes <= target
    return read, skipped


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=12).filter(any), target=st.integers(1, 500))
def test_partitions_hold_every_byte_once_in_order(tmp_path_factory, sizes, target):
    folder = tmp_path_factory.mktemp("files")
    contents = {f"{number:02}.txt": noise(size, number) for number, size in enumerate(sizes)}
    write(folder, contents)
    source = TextSource([folder])
    read, skipped = read_all(source, target)
    assert read == {name: content for name, content in contents.items() if content}
    assert list(read) == sorted(read)
    empty = [str(folder / name) for name, content in contents.items() if not content]
    assert [(item.what, item.reason) for item in skipped] == [(name, "empty") for name in empty]
    assert source.partitions(target) == source.partitions(target)
    one, _ = read_all(TextSource([folder], one_sequence=True), target)
    assert one == {"text": b"".join(contents.values())}


def test_a_file_that_fits_in_a_partition_is_not_cut(tmp_path):
    write(tmp_path, {"a": noise(70, 1), "b": noise(70, 2), "c": noise(250, 3), "d": noise(40, 4)})
    partitions = TextSource([tmp_path]).partitions(100)
    assert [partition.num_bytes for partition in partitions] == [70, 70, 83, 83, 84, 40]


def test_small_data_still_gives_work_to_many(tmp_path):
    write(tmp_path, {f"{number}": bytes(3 * MIB) for number in range(8)})
    assert len(TextSource([tmp_path]).partitions(64 * MIB)) == 8


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_the_store_is_the_files_for_any_number_of_workers(tmp_path, backend):
    contents = {f"d{n % 3}/{n:03}": noise(1 + 997 * n % 5000, n) for n in range(60)}
    contents["big"] = noise(70_000, 1)
    write(tmp_path / "in", contents)
    stores = []
    for workers in (1, 3):
        report = ss.ingest(
            TextSource([tmp_path / "in"]),
            tmp_path / f"{workers}.{backend}",
            workers=workers,
            chunk_bytes=1000,
            shard_bytes=10_000,
        )
        total = sum(map(len, contents.values()))
        assert (report.sequences, report.timesteps, report.bytes_in) == (61, total, total)
        stores.append(ss.open(report.store))
    assert stores[0].fingerprint == stores[1].fingerprint
    for store in stores:
        assert store.ids.to_pylist() == sorted(contents)
        assert {id: store.read(id)["x"].tobytes() for id in contents} == contents


def test_one_sequence_goes_over_partitions_and_shards(tmp_path):
    contents = {f"{n:02}": noise(3_000 + n, n) for n in range(20)}
    write(tmp_path / "in", contents)
    report = ss.ingest(
        TextSource([tmp_path / "in"], one_sequence=True, id="all"), tmp_path / "one.zarr", workers=2, shard_bytes=7_000
    )
    store = ss.open(report.store)
    assert report.sequences == 1
    assert store.ids.to_pylist() == ["all"]
    assert len(list((tmp_path / "one.zarr/shards").glob("*-*"))) > 5
    assert store.read("all")["x"].tobytes() == b"".join(contents.values())


def test_files_behind_a_url_are_read_in_parts():
    system = fsspec.filesystem("memory")
    content = noise(9 * MIB, 7)
    system.pipe("/texts/large", content)
    system.pipe("/texts/small", b"abc")
    try:
        read, _ = read_all(TextSource(["memory://texts"]), 5 * MIB)
        assert read == {"large": content, "small": b"abc"}
        source = TextSource(["memory://texts"])
        partitions = source.partitions(5 * MIB)
        system.pipe("/texts/small", b"ab")
        with pytest.raises(SourceError, match="texts/small' changed"):
            [list(source.read(partition)) for partition in partitions]
    finally:
        system.rm("/texts", recursive=True)


def change(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(("harm", "reason"), [(change, "changed"), (grow, "changed"), (os.remove, "No such file")])
def test_a_file_that_is_not_what_was_found_is_an_error_or_skipped(tmp_path, harm, reason):
    write(tmp_path, {"a": b"abc", "b": b"defg", "c": b"hi"})
    for on_error in ("fail", "skip", "quarantine"):
        source = TextSource([tmp_path], on_error=on_error)
        [partition] = source.partitions(100)
        before = (tmp_path / "b").read_bytes()
        harm(tmp_path / "b")
        if on_error == "fail":
            with pytest.raises(SourceError, match=rf"b' .*{reason}"):
                list(source.read(partition))
        else:
            a, b, c = source.read(partition)
            assert (a.id, c.id) == ("a", "c")
            assert (b.what, b.num_bytes) == (str(tmp_path / "b"), 4)
            assert reason in b.reason
        (tmp_path / "b").write_bytes(before)


def test_a_large_file_that_changes_fails_the_job_even_where_errors_are_skipped(tmp_path):
    write(tmp_path, {"a": b"abc", "large": noise(300, 1)})
    source = TextSource([tmp_path], on_error="skip")
    partitions = source.partitions(100)
    grow(tmp_path / "large")
    with pytest.raises(SourceError, match="large' changed"):
        [list(source.read(partition)) for partition in partitions]


def test_nothing_to_ingest_is_an_error(tmp_path):
    write(tmp_path, {"a": b"", "b": b""})
    with pytest.raises(SourceError, match=r"a' is empty"):
        TextSource([tmp_path / "a"]).partitions(100)
    with pytest.raises(SourceError, match="empty"):
        TextSource([tmp_path]).partitions(100)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"paths": []}, ValueError),
        ({"paths": "abc"}, TypeError),
        ({"paths": ["a"], "on_error": "ignore"}, ValueError),
        ({"paths": ["a"], "id": "x"}, ValueError),
        ({"paths": ["a"], "id": "", "one_sequence": True}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises(error):
        TextSource(**arguments)
