"""Finding one sequence among very many: by the index of ids and the sorted pieces, checked block by block."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.versions import catalogue as module
from streamseq.storage.versions import table

FIELDS = {"x": ss.Field("int64")}


@pytest.fixture
def one_by_one(monkeypatch):
    """Also small tables are looked into row by row."""
    monkeypatch.setattr(module, "_FEW_PIECES", -1)
    monkeypatch.setattr(module, "_FEW_TABLES", 100)


def write(address, appends):
    """Commit a version for each list of (id, timesteps); return what each id has in each version."""
    expected, versions, position = {}, [], 0
    for number, pieces in enumerate(appends):
        with ss.append(address) if number else ss.create(address, FIELDS, shard_bytes=200) as writer:
            for id, steps in pieces:
                values = np.arange(position, position + steps)
                writer.append(id, x=values)
                expected[id] = np.concatenate([expected.get(id, values[:0]), values])
                position += steps
        versions.append({id: values.copy() for id, values in expected.items()})
    return versions


@given(
    appends=st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", "é", "long" * 9, "0"]), st.integers(0, 4)), min_size=1),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_sequences_are_found_one_by_one_as_all_at_once(tmp_path_factory, appends):
    address = tmp_path_factory.mktemp("store") / "s.arrow"
    versions = write(address, appends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW_PIECES", -1)
        for number, expected in enumerate(versions, 1):
            store = DiskStore(address, number)
            for id, values in expected.items():
                sequence = store.index(id)
                assert store.id_of(sequence) == id
                assert store.length(sequence) == len(values)
                for start in range(len(values) + 1):
                    assert store.read(id, start)["x"].tolist() == values[start:].tolist()
            assert store.find("nobody") is None
            assert "rows" not in store.catalogue.__dict__
            assert store.lengths.tolist() == [len(expected[id]) for id in store.ids.to_pylist()]
            assert store.indices(list(expected)).tolist() == [store.index(id) for id in expected]


def test_ids_with_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "crc32c", lambda data, before=0: 7 if isinstance(data, bytes) else crc(data, before))
    address = tmp_path / "s.arrow"
    write(address, [[(f"s{number}", number + 1) for number in range(100)], [("later", 3)]])
    store = DiskStore(address)
    assert [store.find(f"s{number}") for number in range(100)] == list(range(100))
    assert store.find("later") == 100
    assert store.find("s100") is None
    ids = [f"s{number}" for number in range(99, -1, -1)]
    assert store.indices(ids).tolist() == list(range(99, -1, -1))
    assert store.catalogue.find_all([*ids, "s100"])[-1] == -1


crc = table.crc32c


def test_ids_are_found_however_their_hashes_lie(tmp_path, monkeypatch):
    """All hashes in one corner of the range: the guess is wrong, and the search goes on."""
    monkeypatch.setattr(module, "_FEW_IDS", 10**6)
    hashes = iter(range(10**6))
    seen: dict[bytes, int] = {}

    def small(data, before=0):
        return seen.setdefault(data, next(hashes)) if isinstance(data, bytes) else crc(data, before)

    monkeypatch.setattr(table, "crc32c", small)
    address = tmp_path / "s.arrow"
    write(address, [[(f"s{number}", 1) for number in range(5_000)]])
    store = DiskStore(address)
    assert [store.find(f"s{number}") for number in (0, 1, 2_500, 4_999)] == [0, 1, 2_500, 4_999]


def test_many_ids_of_many_tables(tmp_path, monkeypatch):
    address = tmp_path / "s.arrow"
    write(address, [[(f"{part}-{number}", 1) for number in range(30)] for part in range(12)])
    store = ss.open(address)
    ids = store.ids.to_pylist()
    assert store.indices(ids[::-1]).tolist() == list(range(360))[::-1]
    assert store.index("11-29") == 359
    with pytest.raises(KeyError, match="no sequence 'x'"):
        store.indices([*ids, "x"])
    with pytest.raises(TypeError, match="id is a str, got int"):
        store.indices([*ids, 3])
    assert store.find("\ud800") is None


@pytest.mark.usefixtures("one_by_one")
def test_only_blocks_that_are_touched_are_read_and_checked(tmp_path, monkeypatch):
    address = tmp_path / "s.arrow"
    write(address, [[(f"sequence-{number:07d}", 1) for number in range(60_000)]])
    tables = DiskStore(address).snapshot.tables[0]
    assert len(tables.sequences.crc32c) > 24
    path = address / "tables" / tables.sequences.name
    content = bytearray(path.read_bytes())
    content[3 * table.BLOCK_BYTES + 5] ^= 1
    path.write_bytes(content)
    store = ss.open(address)
    broken = 0
    for sequence in range(0, 60_000, 500):
        try:
            id = store.id_of(sequence)
        except ss.CorruptionError:
            broken += 1
        else:
            assert id == f"sequence-{sequence:07d}"
    assert 0 < broken < 20
    with pytest.raises(ss.CorruptionError, match="block 3"):
        _ = ss.open(address).ids


def test_pieces_that_are_not_inside_are_refused_one_by_one(tmp_path, monkeypatch):
    address = tmp_path / "s.arrow"
    write(address, [[("a", 3), ("b", 2)]])
    monkeypatch.setattr(module, "_FEW_PIECES", -1)
    store = DiskStore(address)
    store.__dict__["snapshot"] = dataclasses.replace(store.snapshot, num_timesteps=4)
    with pytest.raises(ss.CorruptionError, match="a piece does not lie in 4 timesteps"):
        store.read("b")
