"""The examples in the docstrings of the search room run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["space", "run", "dependence"])
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(f"streamseq.search.{name}"))
    assert found.attempted
    assert found.failed == 0
