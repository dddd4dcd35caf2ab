"""Pages of the site that are made when it is built: the README, the changelog, the examples, and all commands.

Links that leave `docs/` lead to these pages.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
# A link to what lies in the repository, beside or below `docs/`, and the page that stands for it.
PAGES = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "examples": "examples/index.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {
        "readme.md": (ROOT / "README.md").read_text(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "reference/commands.md": commands_page(),
        **dict(example_pages()),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to the pages that stand for them."""
    source = page.file.src_uri
    # Where the text lies in the repository, so that its relative links can be followed.
    there = {"readme.md": "README.md", "changelog.md": "CHANGELOG.md"}.get(source, f"docs/{source}")

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        file = (ROOT / there).parent.joinpath(target).resolve()
        if not file.is_relative_to(ROOT):
            return link[0]
        path = file.relative_to(ROOT).as_posix()
        name = page_of(path)
        return link[0] if name is None else f"]({'../' * source.count('/')}{name}{anchor})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", moved, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would fetch something from elsewhere when it is read."""
    fetched = re.findall(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(https?:[^"' >]+)""", output)
    if fetched:
        raise PluginError(f"pages fetch nothing from elsewhere, and {page.file.src_uri} fetches {fetched[0]}")
    return output


def page_of(path: str) -> str | None:
    """The page, in `docs/`, that shows a file of the repository; None where there is none."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith(".py"):
        return path.removesuffix(".py") + ".md"
    return None


def example_pages() -> Iterator[tuple[str, str]]:
    """A page for each program in `examples/`, and one that lists them."""
    lines = ["# Examples", "", "Short programs, to be read from top to bottom; the tests run them.", ""]
    for file in sorted((ROOT / "examples").glob("*.py")):
        code = file.read_text()
        first = (ast.get_docstring(ast.parse(code)) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"- [{file.name}]({file.stem}.md): {first}")
        yield f"examples/{file.stem}.md", f"# {file.name}\n\n```python\n{code}```\n"
    yield "examples/index.md", "\n".join(lines) + "\n"


def commands_page() -> str:
    """The reference of the command line, from the help texts of the commands themselves."""
    from streamseq.cli import commands

    context = click.Context(commands, info_name="streamseq")
    lines = ["# Commands", "", *_paragraphs(commands.help or ""), ""]
    for command, path in _walk(commands, context):
        lines += [f"## {path.command_path}", "", *_paragraphs(command.help or ""), ""]
        usage = " ".join([path.command_path, *command.collect_usage_pieces(path)])
        lines += ["```text", usage, "```", "", *_options(command, path), ""]
    return "\n".join(lines)


def _walk(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        path = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _walk(command, path)
        else:
            yield command, path


def _options(command: click.Command, context: click.Context) -> list[str]:
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            names, help = (text.replace("\n", " ").replace("|", "&#124;") for text in record)
            rows.append(f"| <code>{names.replace('<', '&lt;')}</code> | {_escaped(help)} |")
    return ["| option | |", "|---|---|", *rows]


def _paragraphs(help: str) -> list[str]:
    return [_escaped(line) for line in inspect.cleandoc(help).replace("\b", "").splitlines()]


def _escaped(text: str) -> str:
    """Text of a help, which is not Markdown, as Markdown; what stands between backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[])", r"\\\1", part) for part in parts)
