"""The suite of all stores finds what is broken: stores that are, in one way each, fail the tests that are for it."""

import inspect
from itertools import product

import pytest
from support.broken_stores import BROKEN
from support.store_suite import FIELDS, StoreSuite

import streamseq as ss
from streamseq.storage.memory import MemoryStore


def suite_of(kind):
    class Suite(StoreSuite):
        def build(self, folder, arrays, attrs):
            store = ss.from_arrays(arrays, fields=FIELDS, attrs=attrs)
            store.__class__ = kind
            return store

    return Suite()


def cases(test):
    """The arguments of each case of a test that pytest calls with several."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    rows = []
    for mark in marks:
        names, values = mark.args
        names = [names] if isinstance(names, str) else list(names)
        rows.append([dict(zip(names, value if len(names) > 1 else [value], strict=True)) for value in values])
    return [{name: value for each in row for name, value in each.items()} for row in product(*rows)]


def failures(kind, tmp_path, make, same):
    """The names of the tests of the suite that fail with stores of a class."""
    suite = suite_of(kind)
    arrays = StoreSuite.arrays.__wrapped__(suite, make)
    failed = set()
    for name, test in inspect.getmembers(suite, inspect.ismethod):
        if not name.startswith("test_"):
            continue
        for number, case in enumerate(cases(test)):
            folder = tmp_path / kind.__name__ / f"{name}-{number}"
            folder.mkdir(parents=True)
            given = {"arrays": arrays, "make": make, "same": same, "tmp_path": folder} | case
            try:
                given["store"] = StoreSuite.store.__wrapped__(suite, folder, arrays)
                test(**{key: given[key] for key in inspect.signature(test).parameters})
            except (Exception, pytest.fail.Exception):
                failed.add(name)
    return failed


def test_a_store_that_is_not_broken_passes(tmp_path, make, same):
    assert failures(MemoryStore, tmp_path, make, same) == set()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_store_fails(tmp_path, make, same, name):
    kind, tests = BROKEN[name]
    assert tests <= failures(kind, tmp_path, make, same)


def test_every_test_of_the_suite_finds_something():
    tests = {name for name, _ in inspect.getmembers(StoreSuite, inspect.isfunction) if name.startswith("test_")}
    assert set.union(*(tests for _, tests in BROKEN.values())) == tests
