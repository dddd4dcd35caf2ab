"""How figures look: colours that read on a light and on a dark page, and SVG files whose bytes are always the same."""

from __future__ import annotations

import io
import re

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Fills, in the order in which they are used; dark text can be read on each, and each stands out from black and white.
COLOURS = ("#5b9bd5", "#e09f3e", "#5aaa7a", "#b48ad6", "#d9667a")
ON_FILL = "#0b0f14"
FAINT = "#8b939c"
# Stands for the colour of the page's text, which the file asks for.
INK = "#010203"
_CSS = "svg{color:#1d2126}@media(prefers-color-scheme:dark){svg{color:#e3e7ec}}"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "streamseq",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "hatch.linewidth": 0.6,
}


def figure(
    rows: int = 1, columns: int = 1, *, width: float = 8.2, height: float = 3.4, **more: object
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, with a transparent background, and its axes in a flat list."""
    plt.rcParams.update(_STYLE)
    made, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **more)
    made.patch.set_alpha(0)
    for each in axes.flat:
        each.patch.set_alpha(0)
    return made, list(axes.flat)


def svg(made: Figure) -> str:
    """The figure as an SVG file: text in the page's colour, no dates, and coordinates of two digits."""
    out = io.StringIO()
    made.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    plt.close(made)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", out.getvalue())
    text = text.replace(INK, "currentColor").replace("'sans-serif'", "sans-serif")
    text = re.sub(r"(<svg [^>]*>)", rf"\1\n <style>{_CSS}</style>", text, count=1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
