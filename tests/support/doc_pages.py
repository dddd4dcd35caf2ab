"""A page of the documentation as a program: its code blocks, in order, in one folder and one namespace."""

import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from streamseq import cli

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
_FENCE = re.compile(
    r"""^(?P<indent>[ ]*)```(?P<language>[^\n` ]*)(?:[ ]title="(?P<title>[^"\n]+)")?\n"""
    r"""(?P<code>.*?)^(?P=indent)```[ ]*$""",
    re.M | re.S,
)
_SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, the file that its title names, its code, and the line that it starts at."""

    language: str
    title: str | None
    code: str
    line: int


def blocks_of(text):
    """The fenced blocks of a page, in order."""
    return [
        Block(
            language=found["language"],
            title=found["title"],
            code=found["code"],
            line=text[: found.start()].count("\n") + 2,
        )
        for found in _FENCE.finditer(text)
    ]


def run_page(page, names=None):
    """Run the Python and console blocks of a page in the current folder, and return what names it leaves.

    A line of a console block that begins with `$ ` is a command, the lines after it are what it prints on standard
    output, in which `...` stands for anything, and a number for any other: data and machines differ. Nothing
    there: it may print what it likes. A command that prints
    `error: ...` is expected to fail. A Python block with a title is a file that a command runs.
    """
    names = {"__name__": "page"} if names is None else names
    for block in blocks_of(page.read_text()):
        if block.title is not None:
            Path(block.title).write_text(block.code)
        elif block.language == "python":
            lines = "\n" * (block.line - 1) + block.code  # tracebacks show the page's line
            exec(compile(lines, str(page), "exec"), names)
        elif block.language == "console":
            for command, expected in commands_of(block.code):
                said = run_command(command, fails=expected.startswith("error:"))
                shown = f"{page.name}, line {block.line}: {command} printed\n{said}\nand not\n{expected}"
                assert not expected or same_text(expected, said), shown
    return names


def same_text(expected, said):
    """Whether a command said what a page shows, apart from its numbers."""
    expected, said = (re.sub(r"\d[\d,]*(\.\d+)?(e-?\d+)?", "0", text) for text in (expected, said))
    return doctest.OutputChecker().check_output(expected, said, _SAME)


def commands_of(code):
    """Commands of a console block, each with what the page shows of its output."""
    for part in re.split(r"^\$ ", code, flags=re.M)[1:]:
        command, _, expected = part.replace("\\\n", " ").partition("\n")
        yield command.strip(), expected


def run_command(command, fails=False):
    """Run `streamseq ...` and a page's own program in this process, anything else in a shell; what it printed."""
    if found := re.fullmatch(r"python (\w+\.py)", command):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            runpy.run_path(found[1], run_name="__main__")
        return out.getvalue()
    if not command.startswith("streamseq "):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # this environment's programs
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PATH": path})
        assert (done.returncode != 0) == fails, f"{command}: exit code {done.returncode}\n{done.stderr}"
        return done.stderr if fails else done.stdout
    # The shell expands globs, quotes and variables.
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    out, err, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(words.stdout.split("\0")[1:-1])
        except SystemExit as exit:
            status = exit.code
    assert (status != 0) == fails, f"{command}: exit code {status}\n{err.getvalue()}"
    return err.getvalue() if fails else out.getvalue()


def shown_commands(text):
    """Every command line `streamseq ...` that a page shows, in blocks with a fence and in indented ones."""
    text = text.replace("\\\n", " ")
    for found in re.finditer(r"^(?:    |\$ )(streamseq [^\n]+)$", text, re.M):
        yield shlex.split(found[1].split(" · ")[0], comments=True)
