"""Draw the figures of the documentation again: `python docs/figures/draw.py`. A test compares them with these."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
NAMES = ("lanes", "tails", "updates", "bias", "memory")


def main(folder: Path) -> None:
    """Write each figure as an SVG file into a folder."""
    sys.path.insert(0, str(HERE))
    from style import svg

    torch.set_num_threads(1)
    for name in NAMES:
        (folder / f"{name}.svg").write_text(svg(importlib.import_module(name).draw()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
