"""Text as tokens, by a Hugging Face `tokenizers` file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Characters that the tokenizer sees at once: it needs a hundred times as many bytes.
_LONGEST_TEXT = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A tokenizer's file, what was in it, and the dtype of its tokens; picklable. Make it with `load`.

    Args:
        path: The absolute path.
        digest: The SHA-256 of the file.
        dtype: "uint16" where the largest token fits, otherwise "uint32".
    """

    path: str
    digest: str
    dtype: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokens:
        """Look at a `tokenizer.json`.

        Raises:
            FileNotFoundError: There is none.
            ImportError: The package `tokenizers` is not installed.
            ValueError: It is no tokenizer.
        """
        where = os.path.abspath(path)
        digest = _digest(where)
        largest = max(_load(where, digest).get_vocab(with_added_tokens=True).values(), default=0)
        return cls(path=where, digest=digest, dtype="uint16" if largest < 1 << 16 else "uint32")

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.unsignedinteger]]:
        """Return the tokens of each text, without special tokens, truncation and padding.

        A text of more than 512 Ki characters is cut at the last line end, or else the last space, before.

        Raises:
            ValueError: The file is not the one that was looked at.
        """
        tokenizer = _load(self.path, self.digest)
        slices = [_slices(text) for text in texts]
        encoded = iter(
            tokenizer.encode_batch_fast([part for parts in slices for part in parts], add_special_tokens=False)
        )
        return [
            np.concatenate([np.array(next(encoded).ids, self.dtype) for _ in parts] or [np.empty(0, self.dtype)])
            for parts in slices
        ]


def _digest(path: str) -> str:
    try:
        return sha256(Path(path).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no tokenizer {path!r}: give the path of a tokenizer.json") from None
    except OSError as error:
        raise ValueError(f"the tokenizer {path!r} cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=4)
def _load(path: str, digest: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError("tokens need the package tokenizers: pip install 'streamseq[tokenizers]'") from None
    if _digest(path) != digest:
        raise ValueError(f"the tokenizer {path!r} is not the one that the job began with: start the job again")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"{path!r} is no tokenizer of the package tokenizers: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _slices(text: str) -> list[str]:
    parts: list[str] = []
    start = 0
    while len(text) - start > _LONGEST_TEXT:
        stop = start + _LONGEST_TEXT
        middle = start + _LONGEST_TEXT // 2
        line, space = text.rfind("\n", middle, stop), text.rfind(" ", middle, stop)
        # A line end stays with what is before it; a space with the word behind it, as tokenizers have it.
        stop = line + 1 if line >= 0 else space if space >= 0 else stop
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]
