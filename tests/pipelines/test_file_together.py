"""Small files are read together, and the store and the report are those of files that are read one by one."""

import os

import numpy as np
import pytest
import streamseq_pipelines.file_together as together
from streamseq_pipelines.text import TextSource

import streamseq as ss
from streamseq.etl import Piece, Pieces
from streamseq.etl.source import SourceError

FIELDS = {"x": ss.Field("uint8")}

pytestmark = pytest.mark.skipif(together._read is None, reason="built without a compiler")


def flat(items):
    """What is yielded, sequence by sequence: of pieces of one sequence the bytes joined."""
    found = []
    for item in items:
        if isinstance(item, Pieces):
            ends = np.cumsum(item.lengths)
            parts = zip(item.ids, ends - item.lengths, ends, strict=True)
            found += [(id, item.arrays["x"][start:stop].tobytes()) for id, start, stop in parts]
        elif isinstance(item, Piece) and found and found[-1][0] == item.id:
            found[-1] = (item.id, found[-1][1] + item.arrays["x"].tobytes())
        elif isinstance(item, Piece):
            found.append((item.id, item.arrays["x"].tobytes()))
        else:
            found.append((item.what, item.reason))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "_SMALL_BYTES", 200)
    monkeypatch.setattr(together, "_MOST_FILES", 4)
    monkeypatch.setattr(together, "_MOST_BYTES", 600)
    chance = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(60):
        size = int(chance.choice([0, 1, 50, 199, 200, 201, 3000]))
        (tmp_path / f"in/{number:02d}").write_bytes(chance.bytes(size))
    return tmp_path


def both(folder, **options):
    source = TextSource([folder / "in"], **options)
    one = [flat(source.read(partition)) for partition in source.partitions(4000)]
    many = [list(source.read_at_once(partition)) for partition in source.partitions(4000)]
    return one, many


def test_they_are_those_of_reading_one_by_one(folder):
    one, many = both(folder)
    assert [flat(items) for items in many] == one
    assert sum(isinstance(item, Pieces) for items in many for item in items) > 3
    assert max(len(item.ids) for items in many for item in items if isinstance(item, Pieces)) == 4


@pytest.mark.parametrize("options", [{"one_sequence": True}, {"lines": True}])
def test_what_is_no_sequence_for_each_file_is_read_as_ever(folder, options):
    one, many = both(folder, **options)
    assert [flat(items) for items in many] == one
    assert not any(isinstance(item, Pieces) for items in many for item in items)


@pytest.mark.parametrize("how", ["gone", "longer", "shorter", "touched", "a folder"])
def test_a_file_that_is_another_one_now_is_told_and_the_others_are_read(folder, how):
    source = TextSource([folder / "in"], on_error="skip")
    partitions = source.partitions(1 << 30)
    paths = sorted(path for path in (folder / "in").iterdir() if 1 < path.stat().st_size <= 200)
    for path in (paths[2], paths[3], paths[-1]):
        if how in ("gone", "a folder"):
            path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "longer":
            path.write_bytes(path.read_bytes() + b"x")
        elif how == "shorter":
            path.write_bytes(path.read_bytes()[:-1])
        elif how == "touched":
            os.utime(path, ns=(0, 0))
    wanted = [flat(source.read(partition)) for partition in partitions]
    found = [flat(source.read_at_once(partition)) for partition in partitions]
    assert found == wanted
    told = [what for items in found for what, reason in items if what.startswith("/") and reason != "empty"]
    assert told == [str(path) for path in (paths[2], paths[3], paths[-1])]
    failing = TextSource([folder / "in"])
    with pytest.raises(SourceError, match=f"{paths[2]}'"):
        [list(failing.read_at_once(partition)) for partition in partitions]


def test_a_job_writes_the_same_store(folder, monkeypatch):
    source = TextSource([folder / "in"])
    report = ss.ingest(source, folder / "many.zarr", workers=2)
    monkeypatch.delattr(TextSource, "read_at_once")
    other = ss.ingest(source, folder / "one.zarr", workers=2)
    assert ss.open(folder / "many.zarr").fingerprint == ss.open(folder / "one.zarr").fingerprint
    assert [str(item) for item in report.skipped] == [str(item) for item in other.skipped]
    assert (report.sequences, report.bytes_in) == (other.sequences, other.bytes_in)


def test_ids_that_come_twice_are_refused(tmp_path):
    class Twice:
        fields = FIELDS
        threads = True

        def partitions(self, target_bytes):
            return TextSource([tmp_path / "in"]).partitions(target_bytes)

        def read(self, partition):
            raise AssertionError

        def read_at_once(self, partition):
            lengths = np.array([1, 2])
            yield Pieces(ids=["a", "b"], lengths=lengths, arrays={"x": np.zeros(3, np.uint8)})
            yield Pieces(ids=["c", "b"], lengths=lengths, arrays={"x": np.zeros(3, np.uint8)})

    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"x")
    with pytest.raises(SourceError, match="'b' comes twice"):
        ss.ingest(Twice(), tmp_path / "s.zarr", workers=1)


def test_the_reader_is_given_what_fits(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    out = np.empty(2, np.uint8)
    with pytest.raises(ValueError, match="the buffer holds all"):
        together._read.read_files((str(tmp_path / "a"),), np.array([3]), np.array([0]), out)
    with pytest.raises(TypeError):
        together._read.read_files((3,), np.array([1]), np.array([0]), out)
    with pytest.raises(ValueError, match="null"):
        together._read.read_files(("a\0b",), np.array([1]), np.array([0]), out)


def test_what_is_held_is_not_written_over(folder):
    source = TextSource([folder / "in"])
    one, many = both(folder)
    held = [item for partition in source.partitions(4000) for item in source.read_at_once(partition)]
    assert flat(held) == [item for items in one for item in items] == [each for items in many for each in flat(items)]


def test_memory_that_nobody_holds_is_used_again(folder):
    source = TextSource([folder / "in"])
    [partition] = source.partitions(1 << 30)
    places = set()
    for item in source.read_at_once(partition):
        if isinstance(item, Pieces):
            places.add(item.arrays["x"].ctypes.data)
    assert 1 <= len(places) <= 2
    held = [item for item in source.read_at_once(partition) if isinstance(item, Pieces)]
    assert len({item.arrays["x"].ctypes.data for item in held}) == len(held) > 2
