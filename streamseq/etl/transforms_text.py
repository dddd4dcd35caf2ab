"""Transforms as text, for command lines: `clip:x,0,1`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from streamseq.etl.transforms_base import Transform
from streamseq.etl.transforms_halo import Derivative, Filter
from streamseq.etl.transforms_in_order import FillGaps, Resample
from streamseq.etl.transforms_stepwise import Cast, Clip, Function, Normalise, OneHot, Rename, Select


def parse_transform(text: str) -> Transform:
    """Make a transform from its name, a colon and what it takes, between commas.

    Args:
        text: One of `cast:FIELD,DTYPE`, `select:FIELD,…`, `rename:FIELD,NAME`, `normalise:FIELD,MEAN,STD`,
            `clip:FIELD,LOW,HIGH` (either may be empty), `onehot:FIELD,CLASSES`, `resample:RATE,TO[,METHOD]`,
            `fill-gaps:TIME,STEP[,FILL]`, `filter:FIELD,TAP,…`, `derivative:FIELD[,STEP]`, `function:MODULE.NAME`.

    Raises:
        ValueError: It is none of these, or its values are wrong.

    Example:
        >>> str(parse_transform("clip:x,0,")), parse_transform("fill-gaps:time,3600,nan").step
        ("Clip('x')", 3600)
        >>> parse_transform("clip:x,low,1")
        Traceback (most recent call last):
            ...
        ValueError: 'clip:x,low,1' is no transform, clip:FIELD,LOW,HIGH is: 'low' is no number
    """
    name, _, rest = text.partition(":")
    if name not in _KINDS:
        raise ValueError(f"a transform is one of {', '.join(_KINDS)}, got {text!r}: write it as in {_KINDS['clip'][0]}")
    form, fewest, most, make = _KINDS[name]
    given = [part.strip() for part in rest.split(",")] if rest else []
    if not fewest <= len(given) <= most:
        raise ValueError(f"{text!r} is no transform, {form} is")
    try:
        return make(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r} is no transform, {form} is: {error}") from None


def _number(text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"{text!r} is no number")


def _bound(text: str) -> int | float | None:
    return _number(text) if text else None


def _whole(text: str) -> int:
    value = _number(text)
    if not isinstance(value, int):
        raise ValueError(f"{text!r} is no whole number")
    return value


def _fill(text: str = "forward") -> str | float:
    return text if text == "forward" else _number(text)


def _named_function(text: str) -> Function:
    module, _, name = text.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no function {text!r} ({error})") from None
    if not callable(found):
        raise ValueError(f"{text!r} is no function")
    return Function(found)


_MANY = 1 << 30
_KINDS: dict[str, tuple[str, int, int, Callable[[list[str]], Transform]]] = {
    "cast": ("cast:FIELD,DTYPE", 2, 2, lambda given: Cast(*given)),
    "select": ("select:FIELD,…", 1, _MANY, Select),
    "rename": ("rename:FIELD,NAME", 2, 2, lambda given: Rename(*given)),
    "normalise": ("normalise:FIELD,MEAN,STD", 3, 3, lambda given: Normalise(given[0], *map(_number, given[1:]))),
    "clip": ("clip:FIELD,LOW,HIGH", 3, 3, lambda given: Clip(given[0], *map(_bound, given[1:]))),
    "onehot": ("onehot:FIELD,CLASSES", 2, 2, lambda given: OneHot(given[0], _whole(given[1]))),
    "resample": (
        "resample:RATE,TO[,METHOD]",
        2,
        3,
        lambda given: Resample(_number(given[0]), _number(given[1]), *given[2:]),
    ),
    "fill-gaps": (
        "fill-gaps:TIME,STEP[,FILL]",
        2,
        3,
        lambda given: FillGaps(given[0], _number(given[1]), _fill(*given[2:])),
    ),
    "filter": ("filter:FIELD,TAP,…", 2, _MANY, lambda given: Filter(given[0], [*map(_number, given[1:])])),
    "derivative": (
        "derivative:FIELD[,STEP]",
        1,
        2,
        lambda given: Derivative(given[0], _number("".join(given[1:]) or "1")),
    ),
    "function": ("function:MODULE.NAME", 1, 1, lambda given: _named_function(given[0])),
}


def transform_of(given: Any) -> Transform:
    """A transform, of itself, of a user's function or of text.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(given, Transform):
        return given
    if isinstance(given, str):
        return parse_transform(given)
    if callable(given) and not isinstance(given, type):
        return Function(given)
    raise TypeError(
        f"a transform is one of streamseq.etl.transforms, a function of a dict of arrays, or text, got {given!r}: a "
        "class is called first"
    )
