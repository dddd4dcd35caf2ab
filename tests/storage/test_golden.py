"""Stores that earlier versions wrote are read for ever: tests/golden has one of each backend a format version."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.plain_reader import PlainReader

import streamseq as ss
from streamseq.storage.versions.version import FORMAT_VERSION

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(GOLDEN.glob("format-*/store.*"))


def expected(address, version):
    """What a version holds, by id and field."""
    with np.load(address.parent / f"{address.suffix[1:]}-{version}.npz") as held:
        return {
            str(id): {key.split()[1]: held[key] for key in held.files if key.split()[0] == str(number)}
            for number, id in enumerate(held["ids"])
        }


def digest(address):
    return {
        str(path.relative_to(address)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(address.rglob("*"))
        if path.is_file()
    }


def test_there_are_stores_of_every_format_version():
    assert [path.parent.name for path in STORES] == [
        f"format-{number}" for number in range(1, FORMAT_VERSION + 1) for _ in range(2)
    ]


@pytest.mark.parametrize("address", STORES, ids=lambda path: f"{path.parent.name}{path.suffix}")
def test_stores_of_earlier_versions_read_as_they_were_written(address):
    before = digest(address)
    versions = ss.open(address).versions
    assert versions == [1, 2, 3, 4]
    for version in versions:
        store = ss.open(address, version=version)
        wanted = expected(address, version)
        assert store.ids.to_pylist() == list(wanted)
        for id, arrays in wanted.items():
            got, plain = store.read(id), PlainReader(address, version).read(id)
            assert got.keys() == arrays.keys() == store.fields.keys()
            for name, values in arrays.items():
                assert got[name].dtype == plain[name].dtype == values.dtype
                assert got[name].shape == plain[name].shape == values.shape
                assert got[name].tobytes() == plain[name].tobytes() == values.tobytes()
        assert store.attrs("plant-3") == {"site": "nörth", "level": 2}
        assert store.verify().ok
    assert ss.open(address, version=2).fingerprint == ss.open(address, version=3).fingerprint
    assert digest(address) == before


@pytest.mark.parametrize("address", STORES, ids=lambda path: f"{path.parent.name}{path.suffix}")
def test_stores_of_earlier_versions_are_added_to(address, tmp_path):
    copy = shutil.copytree(address, tmp_path / address.name)
    wanted = expected(address, 4)
    with ss.append(copy) as writer:
        writer.append("plant-3", **wanted["植物"])
        writer.write("later", **wanted["nothing"])
    store = ss.open(copy)
    assert store.version == 5
    for name, values in wanted["plant-3"].items():
        assert store.read("plant-3")[name].tobytes() == values.tobytes() + wanted["植物"][name].tobytes()
        assert store.read("later")[name].tobytes() == wanted["nothing"][name].tobytes()
    assert store.verify().ok
