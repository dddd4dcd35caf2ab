"""The examples in the docstrings of the storage room run."""

import doctest
import importlib
import pkgutil

import pytest

import streamseq.storage

MODULES = [module.name for module in pkgutil.walk_packages(streamseq.storage.__path__, "streamseq.storage.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
