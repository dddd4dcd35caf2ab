"""Single bits of a store's files are flipped: no wrong datum is ever returned, and nearly all flips are noticed."""

import random

import pytest
from support.small_store import SmallStore

import streamseq as ss
from streamseq.storage.upkeep.verify import verify


@pytest.fixture(scope="module", params=["zarr", "arrow"])
def small(request):
    store = SmallStore(request.param)
    yield store
    store.close()


def flip_bits(small, count, seed):
    """Flip one bit at a time, anywhere in any file; return how many were noticed by reading everything."""
    numbers = random.Random(seed)
    paths = list(small.files)
    sizes = [len(content) for content in small.files.values()]
    noticed = 0
    for path in numbers.choices(paths, sizes, k=count):
        content = bytearray(small.files[path])
        position = numbers.randrange(len(content))
        content[position] ^= 1 << numbers.randrange(8)
        path.write_bytes(content)
        try:
            noticed += not small.check()
        except Exception as error:
            error.add_note(f"byte {position} of {path.relative_to(small.root)}, {content[position]} after the flip")
            raise
        path.write_bytes(small.files[path])
    return noticed


def test_no_flipped_bit_becomes_a_wrong_datum(small):
    assert flip_bits(small, 60, seed=0) > 40
    assert small.check()


@pytest.mark.soak
def test_no_one_of_a_thousand_flipped_bits_becomes_a_wrong_datum(small):
    assert flip_bits(small, 1000, seed=1) > 700


def test_every_flip_in_stored_values_and_tables_is_noticed(small):
    numbers = random.Random(2)
    for path in small.files:
        if path.suffix == ".json":
            continue
        content = bytearray(small.files[path])
        content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        path.write_bytes(content)
        if "attachment" in path.name:
            assert not verify(small.root, all_versions=True).ok, path
        else:
            assert not small.check(), path
        path.write_bytes(small.files[path])


def test_a_flip_that_is_not_noticed_is_one_of_the_test_s_own(small, monkeypatch):
    """The test can fail: without checksums a wrong datum is returned."""
    monkeypatch.setattr("streamseq.storage.disk_store.check_checksums", lambda checksums: "never")
    with pytest.raises(AssertionError):
        flip_bits(small, 200, seed=0)
    small.put_back()
    assert ss.open(small.root).versions == [1, 2, 3]
