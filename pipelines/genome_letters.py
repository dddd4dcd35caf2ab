"""Letters of nucleotides and proteins as numbers: the alphabet, its case, and what is masked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a byte is: a letter that has a number, a line end, or nothing that belongs into a sequence.
LETTER, LINE_END, BAD = 0, 1, 2

LOWER = ("keep", "upper", "mask")
AMBIGUOUS = ("fail", "n", "mask")
# IUPAC's letters for more than one nucleotide.
_AMBIGUOUS = "RYSWKMBDHVN"
# Gaps and stops, beside letters, where there is no alphabet.
_OTHERS = "-*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """How letters become numbers.

    Args:
        alphabet: The upper-case letters in the order of their codes, from 0; None: letters stay bytes, and those of
            nucleotides and proteins, `-` and `*` are allowed.
        lower: "keep": lower-case letters stay themselves; their codes follow those of all upper-case ones.
            "upper": they are taken for upper-case ones. "mask": that too, and the field `mask` is true there.
        ambiguous: IUPAC's letters for several nucleotides, N among them, that the alphabet has not: "fail": they are
            bad input. "n": they are N. "mask": they have code 0, and the field `mask` is true there.

    Raises:
        ValueError: A letter comes twice or is none, or a value is another one.

    Example:
        >>> letters = Letters(alphabet="ACGTN", lower="mask", ambiguous="n")
        >>> values, mask, kinds = letters.tables
        >>> values[list(b"ACGTNacR")], mask[list(b"ACGTNacR")].astype(int)
        (array([0, 1, 2, 3, 4, 0, 1, 4], dtype=uint8), array([0, 0, 0, 0, 0, 1, 1, 0]))
    """

    alphabet: str | None = None
    lower: str = "keep"
    ambiguous: str = "fail"

    def __post_init__(self) -> None:
        if self.lower not in LOWER:
            raise ValueError(f"lower is one of {', '.join(LOWER)}, got {self.lower!r}")
        if self.ambiguous not in AMBIGUOUS:
            raise ValueError(f"ambiguous is one of {', '.join(AMBIGUOUS)}, got {self.ambiguous!r}")
        if self.alphabet is None:
            if self.ambiguous != "fail":
                raise ValueError("without an alphabet every letter stays itself, ambiguous ones too: give an alphabet")
            return
        fit = all(
            33 <= ord(letter) < 127 and letter not in ">@" and letter == letter.upper() for letter in self.alphabet
        )
        if not self.alphabet or not fit or len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError(
                f"an alphabet is upper-case letters, - and *, each once, got {self.alphabet!r}: write it like ACGTN"
            )
        if self.ambiguous == "n" and "N" not in self.alphabet:
            raise ValueError(f"ambiguous letters become N, which the alphabet {self.alphabet!r} has not: add it")

    @property
    def masks(self) -> bool:
        """Whether there is a field `mask`."""
        return self.lower == "mask" or self.ambiguous == "mask"

    @property
    def tables(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]:
        """The number, the mask and the kind of each byte: uint8, bool and uint8 [256]."""
        return _tables(self)

    def numbers(self, data: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The fields of letters: `x`, and `mask` where there is one."""
        values, mask, _ = self.tables
        return {"x": values[data], **({"mask": mask[data]} if self.masks else {})}


@lru_cache(maxsize=8)
def _tables(letters: Letters) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]:
    values = np.zeros(256, np.uint8)
    mask = np.zeros(256, np.bool_)
    kinds = np.full(256, BAD, np.uint8)
    kinds[list(b"\r\n")] = LINE_END
    known = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _OTHERS if letters.alphabet is None else letters.alphabet
    for code, letter in enumerate(known):
        number = ord(letter) if letters.alphabet is None else code
        values[ord(letter)], kinds[ord(letter)] = number, LETTER
        if letter != letter.lower():
            low = ord(letter.lower())
            kept = low if letters.alphabet is None else len(known) + code
            values[low] = kept if letters.lower == "keep" else number
            mask[low], kinds[low] = letters.lower == "mask", LETTER
    if letters.alphabet is not None and letters.ambiguous != "fail":
        for letter in set(_AMBIGUOUS) - set(known):
            for byte in (ord(letter), ord(letter.lower())):
                if letters.ambiguous == "n":
                    like = ord("N" if byte == ord(letter) else "n")
                    values[byte], mask[byte] = values[like], mask[like]
                else:
                    mask[byte] = True
                kinds[byte] = LETTER
    return values, mask, kinds
