"""HTML elements: whatever is not an element already is text, and escaped."""

from __future__ import annotations

import html
import re

# What ids and paths may hold and a page cannot show: controls, halves of characters, and what turns the direction of
# the text after it.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LONGEST = 10_000
# Elements that have no end.
_VOID = {"input"}


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


def shown(value: object, longest: int = _LONGEST) -> str:
    r"""Any text as a page shows it: what cannot be seen as its number, what is long cut in its middle.

    Args:
        value: The text, or what is made text.
        longest: Characters that are shown at most.

    Example:
        >>> shown("a\x00b"), shown("abcdefgh", longest=5)
        ('a\\x00b', 'ab…gh')
    """
    text = str(value)
    if len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[: longest - 1 - half]}…{text[-half:]}"
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def element(tag: str, *children: str | None, **attributes: str | int | float | bool | None) -> Html:
    """An element; children that are no `Html` are text.

    Args:
        tag: Its name.
        children: What is in it, one after the other; None: nothing.
        attributes: By name, `class_` for class, `aria_label` for aria-label; True: without a value; None and False: not
            there.

    Example:
        >>> element("p", "1 < 2 ", element("b", "so"), class_="lead")
        '<p class="lead">1 &lt; 2 <b>so</b></p>'
    """
    said = []
    for name, value in attributes.items():
        key = name.removesuffix("_").replace("_", "-")
        if value is True:
            said.append(f" {key}")
        elif value is not None and value is not False:
            said.append(f' {key}="{html.escape(shown(value))}"')
    opening = f"<{tag}{''.join(said)}>"
    return Html(opening if tag in _VOID else opening + join(*children) + f"</{tag}>")


def join(*children: str | None) -> Html:
    """Elements and text, one after the other.

    Example:
        >>> join("a & b", element("i", "c"))
        'a &amp; b<i>c</i>'
    """
    return Html("".join(each if isinstance(each, Html) else html.escape(shown(each)) for each in children if each))


def label(value: object, longest: int = 80) -> str:
    """Text for a chart, whose labels would otherwise be read as HTML.

    Example:
        >>> label("<b>a</b>")
        '&lt;b&gt;a&lt;/b&gt;'
    """
    return html.escape(shown(value, longest), quote=False)
