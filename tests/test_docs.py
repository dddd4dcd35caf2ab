"""Every Python block of the guide runs, in order, and the examples in docstrings do what they show."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import streamseq

DOCS = Path(__file__).parent.parent / "docs"


def test_the_guide_s_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "guide.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(compile(block, "guide.md", "exec"), names)
    assert names["update"].num_timesteps > 0


MODULES = [module.name for module in pkgutil.walk_packages(streamseq.__path__, "streamseq.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_do_what_they_show(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"np": __import__("numpy")})
    assert not failed


def test_links_between_pages_lead_somewhere():
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
