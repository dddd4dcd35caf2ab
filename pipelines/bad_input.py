"""What a pipeline does with input that is not what it has to be: raise an error, or hand over what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from streamseq.etl import Skipped, SourceError
from streamseq.etl.source import ON_ERROR

from .file_bytes import FileError
from .files import InputFile


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput:
    """The policy of a source.

    Args:
        on_error: "fail", "skip" or "quarantine".

    Raises:
        ValueError: `on_error` has another value.
    """

    on_error: str

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error is one of {', '.join(ON_ERROR)}, got {self.on_error!r}")

    @property
    def skips(self) -> bool:
        """Whether what is bad is left out and the rest goes on."""
        return self.on_error != "fail"

    def file(self, file: InputFile, error: FileError) -> Skipped:
        """Leave out a whole file, which stays where it is.

        Raises:
            FileError: Nothing is to be left out.
        """
        if not self.skips:
            raise error
        return Skipped(what=file.address, place=error.place, reason=error.reason, num_bytes=file.size)

    def part(self, file: InputFile, place: str, reason: str, content: bytes | None, num_bytes: int) -> Skipped:
        """Leave out a line or record of a file, whose bytes are kept where they are quarantined.

        Args:
            file: The file.
            place: Where in it, such as "line 17".
            reason: Why.
            content: The bytes; None where there are too many to hold.
            num_bytes: How many.

        Raises:
            SourceError: Nothing is to be left out.
        """
        if not self.skips:
            raise SourceError(f"{file.address!r}, {place}: {reason}")
        kept = content if self.on_error == "quarantine" else None
        return Skipped(what=file.address, place=place, reason=reason, num_bytes=num_bytes, content=kept)
