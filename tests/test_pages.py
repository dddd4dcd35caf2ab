"""Every code block of the documentation runs, in order, page by page, and every command that is shown exists."""

import os
import re

import click
import numpy as np
import pytest
from support.doc_pages import DOCS, ROOT, blocks_of, run_command, run_page, shown_commands

import streamseq as ss
from streamseq import cli

PAGES = sorted(DOCS.rglob("*.md"))
# Pages that explain without code, and what the others must have come to: an expression of the names that their
# blocks leave. It fails where a block is missing, or no longer seen as one.
PROSE = {"benchmarks.md", "format.md", "glossary.md", "index.md", "howto/index.md", "explanation/index.md"}
PROSE |= {str(page.relative_to(DOCS)) for folder in ("design", "reference") for page in (DOCS / folder).glob("*.md")}
ENDS = {
    "explanation/tokens.md": "len(windows) == 4 and even.occupancy.busy == 1",
    "explanation/truncation.md": "exact.relative < 1e-5 and whole.segment == 240",
    "guide.md": "update.num_timesteps > 0 and result.best and compacted.scattered == 1",
    "howto/audio.md": "len(losses) == 8 * len(stream)",
    "howto/cloud-storage.md": "len(stream) == 20",
    "howto/csv.md": "error < still and len(days) == 60",
    "howto/genome.md": "update.loss < 1.7",
    "howto/own-model.md": "update.loss > 0 and Convolution and WithHead and Leaky",
    "howto/resume.md": "len(whole) == 4 and os.path.exists('run/checkpoint.pt')",
    "howto/several-gpus.md": "len(streams) == 2 and os.path.exists('train.py')",
    "howto/training-loops.md": "val_loss < 0.3 and len(losses) > len(stream) and sum(made) < len(made) and error < 1",
    "tutorial.md": "len(nll) == len(text) and os.path.exists('bias.png') and os.path.exists('search.html')",
    "truncation.md": "0 < bias.relative and bias.k2 == k2",
}


def name_of(page):
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in PROSE], ids=name_of)
def test_a_page_s_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page(page)
    assert name_of(page) in ENDS, (
        f"{name_of(page)} is new: say in ENDS what its code leaves, or in PROSE that it has none"
    )
    assert eval(ENDS[name_of(page)], {**names, "os": os})


def test_no_page_that_is_prose_has_code():
    for page in PAGES:
        languages = {block.language for block in blocks_of(page.read_text())}
        assert name_of(page) not in PROSE or not languages & {"python", "console"}, page


def test_every_block_says_whether_it_is_run():
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text()
        for block in blocks_of(text):
            assert block.language in {"python", "console", "text"}, f"{page.name}, line {block.line}"
        assert len(re.findall(r"^ *(?:```|~~~)", text, re.M)) == 2 * len(blocks_of(text)), page.name


def test_the_twelve_lines_of_the_readme_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ss.create("library.zarr", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.arange(300, dtype=np.uint8))
    first = next(block for block in blocks_of((ROOT / "README.md").read_text()) if block.language == "python")
    names = {}
    exec(compile(first.code, "README.md", "exec"), names)
    assert names["update"].num_timesteps == 299 - 2 * 128  # of the last update


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_are_shown_have_these_options(page):
    for words in shown_commands(page.read_text()):
        command, context = cli.commands, click.Context(cli.commands, info_name=words.pop(0))
        while isinstance(command, click.Group):
            name = words.pop(0)
            command = command.get_command(context, name)
            assert command is not None, f"{page.name}: there is no command {name}"
        command.make_context(command.name, words)  # raises on an option that is not there


@pytest.mark.soak  # two more processes that import torch
def test_several_processes_print_what_one_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "howto/several-gpus.md")
    one, two = run_command("python train.py"), run_command("torchrun --nproc-per-node 2 train.py")
    assert one == two
