"""The copy of many pieces: in C, and by numpy where there is no compiler."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.data import blocks, pieces
from streamseq.data.pieces import ZEROS, Rows, announce, copy_pieces, copy_pieces_slowly
from streamseq.storage.interface import InFile

needs_c = pytest.mark.skipif(pieces._copy is None, reason="installed without a compiler")


@st.composite
def jobs(draw):
    """A block's shape, its rows, sources, and a table of pieces that do not overlap."""
    windows, lanes, length = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    shape = draw(st.sampled_from([(), (3,), (2, 2)]))
    dtype = np.dtype(draw(st.sampled_from(["uint8", "int16", "float32", "int64", "bool"])))
    batch_first = draw(st.booleans())
    step_bytes = dtype.itemsize * int(np.prod(shape))
    rows = Rows(lanes=lanes, length=length, step_bytes=step_bytes, batch_first=batch_first)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    sources = [rng.integers(0, 256, (40, *shape)).astype(dtype) for _ in range(3)]
    columns = []
    for lane in range(lanes):
        borders = sorted(draw(st.lists(st.integers(0, windows * length), max_size=6)))
        for at, end in zip(borders[:-1:2], borders[1::2], strict=False):
            source = draw(st.sampled_from([0, 1, 2, ZEROS]))
            low = draw(st.integers(0, 40 - (end - at))) if source >= 0 else 0
            columns.append((source, low, lane, at, end - at))
    table = rows.table(*np.array(columns, np.int64).reshape(-1, 5).T)
    axes = (lanes, length) if batch_first else (length, lanes)
    return (windows, *axes, *shape), rows, sources, table


def reference(block, rows, sources, table):
    """Timestep by timestep."""
    lane_first = block if rows.batch_first else block.swapaxes(1, 2)
    for source, low, base, at, count in table.tolist():
        for step in range(count // rows.step_bytes):
            window, place = divmod(at // rows.step_bytes + step, rows.length)
            value = sources[source][low // rows.step_bytes + step] if source >= 0 else 0
            lane_first[window, base // rows.row, place] = value


def in_file(path, values):
    path.write_bytes(b"head" + values.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    return InFile(file=None, descriptor=descriptor, offset=4, num_bytes=values.nbytes)


@pytest.mark.parametrize("copy", [pytest.param(copy_pieces, marks=needs_c), copy_pieces_slowly])
@settings(max_examples=200, deadline=None)
@given(jobs())
def test_pieces_go_where_they_belong_and_nowhere_else(tmp_path_factory, copy, job):
    shape, rows, sources, table = job
    wanted = np.full(shape, 77).astype(sources[0].dtype)
    found = wanted.copy()
    reference(wanted, rows, sources, table)
    # What lies in memory, lies there with gaps, or lies in a file.
    gaps = np.repeat(sources[1], 2, axis=0)[::2]
    file = in_file(tmp_path_factory.mktemp("file") / "x", sources[2])
    try:
        copy(found, rows, [sources[0], gaps if copy is copy_pieces_slowly else sources[1], file], table)
    finally:
        os.close(file.descriptor)
    assert np.array_equal(found, wanted)


def test_sources_with_gaps_are_copied_without_c():
    values = np.arange(20).reshape(10, 2)[:, 1]
    block = np.zeros((2, 1, 5), values.dtype)
    rows = Rows(lanes=1, length=5, step_bytes=8, batch_first=True)
    one = np.array([0])
    copy_pieces(block, rows, [values], rows.table(one, one, one, one, one + 10))
    assert block.ravel().tolist() == values.tolist()


@needs_c
def test_long_pieces_are_read_in_several_steps(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    file = in_file(tmp_path / "x", values)
    one = np.array([0])
    for length in (1 << 10, 1 << 14):  # short rows go by way of a buffer, long ones straight
        for lanes in (1, 2):
            block = np.zeros((len(values) // length, lanes, length), np.uint8)
            rows = Rows(lanes=lanes, length=length, step_bytes=1, batch_first=True)
            copy_pieces(block, rows, [file], rows.table(one, one, one + lanes - 1, one, one + len(values)))
            assert np.array_equal(block[:, lanes - 1].ravel(), values)
            assert lanes == 1 or not block[:, 0].any()
    os.close(file.descriptor)


@needs_c
@pytest.mark.parametrize(
    "piece",
    [
        (1, 0, 0, 0, 1),
        (-3, 0, 0, 0, 1),
        (0, 9, 0, 0, 2),
        (0, -1, 0, 0, 1),
        (0, 0, 3, 0, 1),
        (0, 0, 0, 19, 2),
        (0, 0, 0, -1, 1),
        (0, 0, 0, 0, -1),
        (0, 2**62, 0, 0, 2**62),
        (-1, 0, 0, 2**62, 2**62),
        (-1, 0, 2**60, 0, 1),
    ],
)
def test_pieces_outside_their_source_or_the_block_are_refused(piece):
    block = np.zeros((4, 2, 5), np.uint8)
    table = np.array([piece], np.int64)
    table[:, 2] *= 5
    with pytest.raises(ValueError, match="piece 0"):
        pieces._copy.copy(block, [np.zeros(10, np.uint8)], table, 5, 10)
    assert not block.any()


@needs_c
def test_a_file_that_ends_early_or_cannot_be_read_is_an_error(tmp_path):
    file = in_file(tmp_path / "x", np.zeros(100, np.uint8))
    one = np.array([0])
    for length in (50, 5000):
        rows = Rows(lanes=1, length=length, step_bytes=1, batch_first=True)
        block = np.zeros((1, 1, length), np.uint8)
        longer = InFile(file=None, descriptor=file.descriptor, offset=80, num_bytes=10**6)
        with pytest.raises(EOFError):
            copy_pieces(block, rows, [longer], rows.table(one, one, one, one, one + length))
        closed = InFile(file=None, descriptor=10**6, offset=0, num_bytes=10**6)
        with pytest.raises(OSError, match="descriptor"):
            copy_pieces(block, rows, [closed], rows.table(one, one, one, one, one + length))
    os.close(file.descriptor)


def test_streams_are_the_same_without_c(monkeypatch, tmp_path):
    with ss.create(
        tmp_path / "s.arrow", {"x": ss.Field("float32", (2,), codec="none"), "y": ss.Field("bool")}
    ) as writer:
        for number in range(20):
            values = np.arange(number * 100, number * 100 + 2 * number + 2, dtype=np.float32).reshape(-1, 2)
            writer.write(str(number), x=values, y=values[:, 0] % 3 == 0)
    for batch_first in (True, False):
        make = lambda: ss.StreamDataset(ss.open(tmp_path / "s.arrow"), 3, 4, batch_first=batch_first)  # noqa: E731, B023
        fast = [(w["x"].tolist(), w["y"].tolist(), w.mask.tolist()) for w in ss.StreamLoader(make())]
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "_copy", None)
            stream = make()
            for _ in range(2):
                # Checked the first time, read straight into place the second time.
                slow = [(w["x"].tolist(), w["y"].tolist(), w.mask.tolist()) for w in ss.StreamLoader(stream)]
                assert slow == fast


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_the_operating_system_hears_of_every_chunk_once_and_before_it_is_read(tmp_path, monkeypatch, backend, codec):
    uri = tmp_path / f"store.{backend}"
    with ss.create(uri, {"x": ss.Field("int32", codec=codec)}, chunk_bytes=64, shard_bytes=1024) as writer:
        for name in "abc":
            writer.write(name, x=np.arange(3000, dtype=np.int32))
    told, early = [], []
    announce, read = blocks.announce, blocks.BlockReader.read

    def note(extents):
        told.extend((os.fstat(each.descriptor).st_ino, each.offset) for each in extents)
        announce(extents)

    def note_read(self, request):
        # Of chunks that are announced a second time nothing is added.
        before = len(told)
        for column in request.columns.values():
            note(self._reader.extents(column.field, column.chunks))
        early.append(len(told) == before)
        return read(self, request)

    monkeypatch.setattr(blocks, "announce", note)
    monkeypatch.setattr(blocks.BlockReader, "read", note_read)
    stream = ss.StreamDataset(ss.open(uri), 3, 4)
    assert sum(1 for _ in ss.StreamLoader(stream)) == len(stream)
    assert len(early) > 2
    assert all(early)
    assert len(set(told)) == len(told) == 9000 * 4 // 64 + (9000 * 4 % 64 > 0)


def test_what_is_announced_need_not_be_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        extents = [
            InFile(file=file, descriptor=file.fileno(), offset=offset, num_bytes=size)
            for offset, size in ((0, 100), (50, 1000), (5000, 10), (0, 0))
        ]
        announce(extents)
        assert os.pread(file.fileno(), 1000, 0) == bytes(100)
    # Closed meanwhile.
    announce(extents)
    announce([])
