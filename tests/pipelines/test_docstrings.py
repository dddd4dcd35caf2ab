"""The examples in the docstrings of the pipelines do what they show."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import streamseq_pipelines

MODULES = [module.name for module in pkgutil.walk_packages(streamseq_pipelines.__path__, "streamseq_pipelines.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_do_what_they_show(name):
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs={"np": np})
    assert not failed
