"""What a search tries: for each setting the values to take, or a range, and expressions of other settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

#: A value of a setting.
Value = int | float | str | bool | None

_EXPRESSION = re.compile(r"(?:(\d+(?:\.\d+)?)\s*\*\s*)?([a-z_]\w*)(?:\s*\*\s*(\d+(?:\.\d+)?))?")
_RANGE = re.compile(r"(.+?)\.\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from one to another, both included: integers if both are.

    Args:
        low: The least.
        high: The largest.
        log: Whether each factor, instead of each difference, is as likely.

    Raises:
        ValueError: It is empty, or begins at or below 0 and is logarithmic.
    """

    low: float
    high: float
    log: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes up, got {self.low}..{self.high}: swap its ends")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, got {self.low}..{self.high}: use log=False")


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All candidates of a search.

    Args:
        choices: By setting, the values it takes, or a range. A value of text such as "2*k1" is computed from another
            setting of the same candidate.

    Raises:
        TypeError: A choice is no list of plain values and no range.
        ValueError: A setting has no values.

    Example:
        >>> space = Space.of({"k1": [16, 32], "k2": ["k1", "2*k1"]})
        >>> [space.resolve(each) for each in space.grid()][:3]
        [{'k1': 16, 'k2': 16}, {'k1': 16, 'k2': 32}, {'k1': 32, 'k2': 32}]
    """

    choices: Mapping[str, tuple[Value, ...] | Range]

    @classmethod
    def of(cls, choices: Mapping[str, Sequence[Value] | Range | str]) -> Space:
        """A space from lists, ranges, and text as `parse_choices` reads it; one value stands for a list of it."""
        found: dict[str, tuple[Value, ...] | Range] = {}
        for name, values in choices.items():
            if isinstance(values, Range):
                found[name] = values
                continue
            if isinstance(values, str):
                parsed = parse_choices(values)
                found[name] = parsed
                continue
            each = tuple(values) if isinstance(values, Sequence) else (values,)
            wrong = [value for value in each if not (value is None or isinstance(value, (int, float, str, bool)))]
            if wrong:
                raise TypeError(f"{name} takes plain values, got {wrong[0]!r}: use numbers, text, booleans or None")
            if not each:
                raise ValueError(f"{name} takes at least one value, got none: leave it out, or name one")
            found[name] = tuple(dict.fromkeys(each))
        return cls(choices=found)

    def grid(self) -> list[dict[str, Value]]:
        """Every candidate as it is chosen, unresolved; of several that resolve to the same the first one.

        Raises:
            ValueError: A choice is a range.
        """
        lists = []
        for name, values in self.choices.items():
            if isinstance(values, Range):
                raise ValueError(
                    f"a grid has values, and {name} is a range: list them, or use sampler='random' or 'tpe'"
                )
            lists.append(values)
        seen: dict[tuple[Value, ...], dict[str, Value]] = {}
        for picked in product(*lists):
            chosen = dict(zip(self.choices, picked, strict=True))
            seen.setdefault(tuple(self.resolve(chosen).values()), chosen)
        return list(seen.values())

    def resolve(self, chosen: Mapping[str, Value]) -> dict[str, Value]:
        """The settings that a candidate stands for: expressions are computed.

        Raises:
            ValueError: An expression names a setting that is not chosen, is no number, or names itself.
        """
        done: dict[str, Value] = {}

        def value_of(name: str, trail: tuple[str, ...]) -> Value:
            if name in done:
                return done[name]
            value = chosen[name]
            found = _EXPRESSION.fullmatch(value) if isinstance(value, str) else None
            if found is None or found[2] not in self.choices:
                return value
            if found[2] in trail:
                raise ValueError(f"{name} is computed from itself ({' from '.join([*trail, found[2]])}): give a number")
            base = value_of(found[2], (*trail, found[2]))
            if base is None:  # n, the whole sequence: a multiple of it is n as well
                return None
            if isinstance(base, bool) or not isinstance(base, (int, float)):
                raise ValueError(f"{name} is {value!r}, and {found[2]} is no number but {base!r}")
            made = base * float(found[1] or 1) * float(found[3] or 1)
            return int(made) if isinstance(base, int) and made == int(made) else made

        for name in chosen:
            done[name] = value_of(name, (name,))
        return done


def parse_choices(text: str) -> tuple[Value, ...] | Range:
    """The values that a text lists, or the range.

    Args:
        text: Values between commas: numbers, `n` or `none` for None, `true` and `false`, anything else is text, such as
            `2*k1`. Or `LOW..HIGH` for a range, in which each factor is as likely; `LOW..HIGH linear`: each difference.

    Raises:
        ValueError: It is empty, or a range that is none.

    Example:
        >>> parse_choices("32, 64,n"), parse_choices("k1,2*k1")
        ((32, 64, None), ('k1', '2*k1'))
        >>> parse_choices("1e-4..1e-2")
        Range(low=0.0001, high=0.01, log=True)
    """
    whole = text.strip()
    linear = whole.endswith(" linear")
    found = _RANGE.fullmatch(whole.removesuffix(" linear").strip())
    if found is not None:
        low, high = (_plain(part) for part in found.groups())
        if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
            raise ValueError(f"a range is of two numbers such as 1e-4..1e-2, got {text!r}")
        return Range(low=low, high=high, log=not linear)  # type: ignore[arg-type]
    parts = [part.strip() for part in whole.split(",")]
    if not all(parts):
        raise ValueError(f"values stand between commas, got {text!r}: one of them is empty")
    return tuple(dict.fromkeys(_plain(part) for part in parts))


def _plain(text: str) -> Value:
    text = text.strip()
    if text.lower() in ("n", "none"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
