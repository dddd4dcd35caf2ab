"""The figures of the documentation are what their scripts draw today."""

import importlib
import re
import sys

import numpy as np
import pytest
from support.doc_pages import DOCS

FIGURES = DOCS / "figures"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def parts(text):
    """What an SVG file says and its numbers, apart; names are made of the bits of what they name."""
    text = re.sub(r"\b[a-z][0-9a-f]{10}\b", "name", text)
    return NUMBER.sub("0", text), np.array([float(number) for number in NUMBER.findall(text)])


@pytest.fixture(autouse=True)
def figures_on_the_path(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(FIGURES)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FIGURES) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_is_what_its_script_draws(path):
    svg = importlib.import_module("style").svg
    drawn, numbers = parts(svg(importlib.import_module(path.stem).draw()))
    kept, kept_numbers = parts(path.read_text())
    assert drawn == kept, "python docs/figures/draw.py draws them again"
    np.testing.assert_allclose(numbers, kept_numbers, atol=0.05)


def test_every_figure_is_drawn_and_shown():
    names = {path.stem for path in FIGURES.glob("*.svg")}
    assert names == set(importlib.import_module("draw").NAMES)
    shown = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert not {name for name in names if f"figures/{name}.svg" not in shown}
