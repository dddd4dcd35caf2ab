"""Docstrings do what they show, stores open without streamseq as the README says, links lead somewhere."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamseq

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_the_readme_opens_stores_without_streamseq(tmp_path, backend):
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    address = tmp_path / f"plants.{backend}"
    with streamseq.create(address, {"x": streamseq.Field("float32", (3,))}, shard_bytes=2400) as writer:
        writer.write("plant-1", x=values[:600])
        writer.write("plant-2", x=values[600:700])
    with streamseq.append(address) as writer:
        writer.append("plant-1", x=values[700:])
    readme = (DOCS.parent / "README.md").read_text().split("## Without streamseq")[1].split("\n## ")[0]
    zarr_lines, arrow_lines = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    lines = zarr_lines if backend == "zarr" else zarr_lines.split("\n\n")[0] + "\n" + arrow_lines
    found = "{id: np.concatenate(rows) for id, rows in globals().get('sequences', {}).items()}"
    alone = "import sys; assert not {name for name in sys.modules if name.startswith('streamseq')}"
    code = "\n".join([lines, f"np.savez('out.npz', x=x, **{found})", alone])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = np.load(tmp_path / "out.npz")
    assert np.array_equal(read["x"], values)
    if backend == "zarr":
        assert np.array_equal(read["plant-1"], np.concatenate([values[:600], values[700:]]))
        assert np.array_equal(read["plant-2"], values[600:700])


MODULES = [module.name for module in pkgutil.walk_packages(streamseq.__path__, "streamseq.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_do_what_they_show(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"np": __import__("numpy")})
    assert not failed


def test_links_between_pages_lead_somewhere():
    # The page of commands is made when the site is built, which checks all links and their anchors.
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            made = (page.parent / target).resolve() == DOCS / "reference" / "commands.md"
            assert made or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = [named(path) for path in re.findall(r"^::: (\S+)$", pages, re.MULTILINE)]
    modules = {"__version__", "report", "search", "splits", "truncation"}  # what these hold is shown
    public = {name: getattr(streamseq, name) for name in set(streamseq.__all__) - modules}
    public |= {name: getattr(streamseq.training, name) for name in streamseq.training.__all__}
    public |= {name: getattr(streamseq.etl, name) for name in ("Source", "Partition", "Piece", "Report", "to_dask")}
    public |= {
        name: getattr(streamseq.splits, name) for name in ("AsIs", "Naive", "Domain", "Marker", "Gap", "Calendar")
    }
    errors = named("streamseq.core.errors")
    left_out = {name for name, value in public.items() if value not in shown and not hasattr(errors, name)}
    assert not left_out


def named(path):
    """The object of a dotted path, whether of a module or of what it holds."""
    holder, _, name = path.rpartition(".")
    return getattr(importlib.import_module(holder), name)


def test_docstrings_are_rewritten_as_their_examples_show(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "hooks")
    failed, tried = doctest.testmod(importlib.import_module("docstrings"))
    assert tried
    assert not failed
