"""The examples in the docstrings of the training room run."""

import doctest
import importlib
import pkgutil

import pytest

import streamseq.training

MODULES = [module.name for module in pkgutil.iter_modules(streamseq.training.__path__, "streamseq.training.")]


@pytest.mark.parametrize("name", ["streamseq.training", *MODULES])
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
