"""The log of a run: one JSON object a line, each with the update after which it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamseq.storage.places.commit import replace_file

Row = dict[str, Any]


class MetricsLog:
    """Appends rows to a file, and takes rows back that a resumed run will write again.

    Args:
        path: Of the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, update: int, **values: float | int | str | dict[str, float] | None) -> None:
        """Add a row: what happened, after how many updates, and figures."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "update": update, **values}) + "\n")

    def rows(self) -> list[Row]:
        """All rows; a last line that was not written to its end is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def cut_after(self, update: int) -> None:
        """Drop the rows of later updates."""
        kept = [row for row in self.rows() if row["update"] <= update]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        replace_file(self.path, lambda file: file.write(text.encode()))
