"""Streams, loaders and training over somebody else's files: the same windows as over arrays in memory."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

import streamseq as ss

LENGTHS = {"a": 70, "b": 33, "c": 5, "d": 128, "e": 61}


@pytest.fixture(scope="module")
def arrays():
    found, first = {}, 0
    for id, length in LENGTHS.items():
        numbers = np.arange(first, first + length)
        found[id] = {"x": np.stack([numbers, numbers + 1000], axis=1).astype(np.float32), "on": numbers % 3 == 0}
        first += length
    return found


def of_npy(folder, arrays):
    files = {}
    for id, named in arrays.items():
        # One is read straight from the file, the other gathered.
        np.save(folder / f"{id}-x.npy", named["x"].T)
        np.save(folder / f"{id}-on.npy", named["on"])
        files[id] = {"x": folder / f"{id}-x.npy", "on": folder / f"{id}-on.npy"}
    return ss.adopt_npy(files, {"x": 1})


def of_zarr(folder, arrays):
    for id, named in arrays.items():
        group = zarr.open_group(folder / "all.zarr" / id, mode="w")
        for name, values in named.items():
            group.create_array(name, data=values, chunks=(20, *values.shape[1:]))
    return ss.adopt_zarr({id: folder / "all.zarr" / id for id in arrays}, fields=["x", "on"])


def tables(arrays):
    """Sequences in turns, three timesteps of each."""
    rows = [
        (id, start) for start in range(0, max(LENGTHS.values()), 3) for id, length in LENGTHS.items() if start < length
    ]
    parts = [
        {
            "id": [id] * len(arrays[id]["on"][start : start + 3]),
            "x": arrays[id]["x"][start : start + 3],
            "on": arrays[id]["on"][start : start + 3],
        }
        for id, start in rows
    ]
    x = np.concatenate([part["x"] for part in parts])
    table = pa.table(
        {
            "id": [id for part in parts for id in part["id"]],
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 2),
            "on": np.concatenate([part["on"] for part in parts]),
        }
    )
    return [table[:100], table[100:]]


def of_parquet(folder, arrays):
    for number, table in enumerate(tables(arrays)):
        pa.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=30)
    return ss.adopt_parquet(folder, sequence_column="id")


def of_arrow(folder, arrays):
    for number, table in enumerate(tables(arrays)):
        with pa.ipc.new_file(folder / f"{number}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=30)
    return ss.adopt_arrow(folder, sequence_column="id")


def of_tables(folder, arrays):
    return ss.adopt_arrow(tables(arrays), sequence_column="id")


@pytest.fixture(params=[of_npy, of_zarr, of_parquet, of_arrow, of_tables])
def store(request, tmp_path, arrays, monkeypatch):
    monkeypatch.setattr("streamseq.storage.adopted.source.CHUNK_BYTES", 128)
    return request.param(tmp_path, arrays)


def stream_of(store):
    return ss.StreamDataset(store, lanes=3, window=16, lookahead={"next": ("x", 1)}, shuffle=True)


def same_windows(found, wanted):
    count = 0
    for window, other in zip(found, wanted, strict=True):
        for name in ("x", "on", "next"):
            assert torch.equal(window[name], other[name])
        assert torch.equal(window.mask, other.mask)
        assert np.array_equal(window.token.start, other.token.start)
        count += 1
    assert count > 5


def test_windows_are_those_of_arrays_in_memory(store, arrays):
    # Shuffling keeps runs of chunks together, so without it.
    stream = ss.StreamDataset(store, lanes=3, window=16, lookahead={"next": ("x", 1)})
    wanted = list(ss.StreamDataset(ss.from_arrays(arrays), lanes=3, window=16, lookahead={"next": ("x", 1)}))
    same_windows(stream, wanted)
    same_windows(ss.StreamLoader(stream), wanted)
    same_windows([stream[step] for step in range(len(stream))], wanted)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_windows_are_the_same_from_workers(store, context):
    stream = stream_of(store)
    # Files are open in this process, and threads of pyarrow and zarr have run.
    wanted = list(stream)
    stream[3]
    same_windows(DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context), wanted)


def test_little_memory_gives_the_same_windows(store):
    stream = stream_of(store)
    small = ss.StreamDataset(store, lanes=3, window=16, lookahead={"next": ("x", 1)}, shuffle=True, memory="60kB")
    same_windows(ss.StreamLoader(small, prefetch=1), list(stream))


def test_a_chunk_is_decoded_about_once(store):
    loader = ss.StreamLoader(ss.StreamDataset(store, lanes=5, window=16, fields=["x", "on"]))
    list(loader)
    chunks = sum(len(np.unique(reader_chunks(store, name))) for name in ("x", "on"))
    assert loader.stats.decoded <= 1.1 * chunks


def reader_chunks(store, name):
    """The chunks that all sequences together lie in."""
    number = np.arange(len(store))
    with store.reader([name], 1) as reader:
        return reader.locate(name, (number, np.zeros_like(number), store.lengths)).chunk


def test_many_files_are_not_open_at_once(tmp_path):
    for number in range(300):
        np.save(tmp_path / f"{number:03}.npy", np.full(4, number))
    store = ss.adopt_npy(tmp_path)
    stream = ss.StreamDataset(store, lanes=300, window=2)
    before = len(os.listdir("/proc/self/fd"))
    with store.reader(["x"], 700) as reader:
        for sequence in range(300):
            assert np.concatenate(list(reader.slices("x", sequence, 0, 4))).tolist() == [sequence] * 4
            assert len(os.listdir("/proc/self/fd")) < before + 140
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert sum(window["x"].sum().item() for window in stream) == sum(range(300)) * 4


def test_a_position_is_resumed_in_files_adopted_again(tmp_path, arrays):
    stream = stream_of(of_parquet(tmp_path, arrays))
    windows = list(stream)
    again = stream_of(ss.adopt_parquet(tmp_path, sequence_column="id"))
    again.load_state_dict(windows[4].token.state_dict())
    assert torch.equal(next(iter(again))["x"], windows[5]["x"])
    os.utime(tmp_path / "0.parquet", ns=(0, 0))
    changed = stream_of(ss.adopt_parquet(tmp_path, sequence_column="id"))
    with pytest.raises(ss.ResumeError):
        changed.load_state_dict(windows[4].token.state_dict())


def test_training_runs_on_adopted_files(tmp_path):
    from streamseq.training import TrainingSettings, train

    for number in range(4):
        values = np.arange(number, number + 300, dtype=np.uint8)
        np.save(tmp_path / f"{number}.npy", values)
        pa.parquet.write_table(pa.table({"x": values}), tmp_path / f"{number}.parquet")
    settings = TrainingSettings(k1=20, k2=20, lanes=2, hidden=8, embedding=4, epochs=1)
    losses = [
        train(store, tmp_path / f"run-{number}", settings).loss
        for number, store in enumerate((ss.adopt_npy(tmp_path), ss.adopt_parquet(tmp_path)))
    ]
    assert losses[0] == losses[1]
