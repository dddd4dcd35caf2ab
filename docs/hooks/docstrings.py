"""Docstrings as the reference shows them: `Example:` is a section of code, and `a, b: ...` are two arguments."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SEVERAL = re.compile(r"^( +)((?:\*{0,2}\w+, )+\*{0,2}\w+): ", re.MULTILINE)
_SECTION = re.compile(r"^Args:\n(?:(?: .*)?\n?)*", re.MULTILINE)


class HouseStyle(griffe.Extension):
    """Rewrites docstrings of the house style to what griffe's parser of Google's style understands."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """A docstring with one argument a line, whose examples are under `Examples:`.

    >>> print(rewritten("Adds.\\n\\nArgs:\\n    a, b: Numbers.\\n\\nExample:\\n    code"))
    Adds.
    <BLANKLINE>
    Args:
        a: Numbers.
        b: Numbers.
    <BLANKLINE>
    Examples:
        code
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return _SECTION.sub(lambda section: _one_a_line(section[0]), text)


def _one_a_line(section: str) -> str:
    lines = section.splitlines(keepends=True)
    out: list[str] = []
    for i, line in enumerate(lines):
        several = _SEVERAL.match(line)
        if several is None or len(several[1]) != 4:
            out.append(line)
            continue
        rest = [line[several.end() :]]
        for more in lines[i + 1 :]:
            if not more.startswith(" " * 5):
                break
            rest.append(more)
        *first, last = several[2].split(", ")
        out.extend(f"{several[1]}{name}: {''.join(rest).rstrip()}\n" for name in first)
        out.append(f"{several[1]}{last}: {rest[0]}")
    return "".join(out)
