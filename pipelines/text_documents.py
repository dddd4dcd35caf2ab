"""Documents of JSON lines: one line, one object, whose field is the text."""

from __future__ import annotations

import json
from dataclasses import dataclass


class DocumentError(ValueError):
    """A line is not a document; the message says why, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Which fields of the objects are the text and the id.

    Args:
        text_field: The field with the text.
        id_field: The field with the id, a string or an integer; None: documents are named by their place.

    Example:
        >>> Documents(text_field="text", id_field="key").parse(b'{"key": 7, "text": "caf\\\\u00e9"}')
        ('7', 'café')
    """

    text_field: str
    id_field: str | None = None

    def parse(self, line: bytes) -> tuple[str | None, str]:
        """Return the id and the text of a document.

        Raises:
            DocumentError: The line is not UTF-8 or JSON, or a field is not there or is of another type.
        """
        try:
            found = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DocumentError(f"not UTF-8: byte {error.start} of the line is 0x{line[error.start]:02x}") from None
        except json.JSONDecodeError as error:
            raise DocumentError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
        except (ValueError, RecursionError) as error:  # integers of thousands of digits, lists within lists
            raise DocumentError(f"not JSON that can be read: {error}") from None
        if not isinstance(found, dict):
            raise DocumentError("not a JSON object")
        text = _field(found, self.text_field)
        if not isinstance(text, str):
            raise DocumentError(f"field {self.text_field!r} is not a string")
        if self.id_field is None:
            return None, _unicode(text, self.text_field)
        id = _field(found, self.id_field)
        if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "":
            raise DocumentError(f"field {self.id_field!r}, the id, is not a string with characters or an integer")
        return _unicode(str(id), self.id_field), _unicode(text, self.text_field)


def _field(found: dict[str, object], name: str) -> object:
    if name not in found:
        raise DocumentError(f"there is no field {name!r}")
    return found[name]


def _unicode(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DocumentError(f"field {field!r} has half a surrogate pair, which is no text") from None
    return text
