"""What exact back-propagation through n timesteps needs, as the engine itself predicts it before it runs."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from style import COLOURS, figure

import streamseq as ss

HIDDEN, LANES, SEGMENT = 128, 16, 256
LENGTHS = (256, 1024, 4096, 16384, 65536)


def needed(n: int, segment: int) -> int:
    """Bytes of an update on sequences of n timesteps: activations, boundary states and inputs."""
    data = np.zeros((n, 1), np.float32)
    store = ss.from_arrays({str(lane): {"x": data} for lane in range(LANES)})
    stream = ss.StreamDataset(store, lanes=LANES, window=SEGMENT)
    model = torch.nn.LSTM(1, HIDDEN, batch_first=True)
    engine = ss.TBPTT(model, lambda outputs, window: outputs.square().sum(-1), k1=None, k2=None, segment=segment)
    return engine.memory(stream).total


def draw() -> Figure:
    """The figure."""
    made, (axes,) = figure(height=3.4)
    lines = {
        "exact, one graph over everything": [needed(n, n) for n in LENGTHS],
        f"exact, in segments of {SEGMENT}": [needed(n, SEGMENT) for n in LENGTHS],
    }
    for (label, values), colour, line in zip(lines.items(), COLOURS, ("-o", "-s"), strict=False):
        axes.loglog(
            LENGTHS, [value / 2**20 for value in values], line, color=colour, label=label, linewidth=2, markersize=4
        )
    axes.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
    axes.set_yticks([30, 100, 1000, 10000], ["30", "100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.set(xlabel="n, timesteps", ylabel="MiB of an update")
    axes.legend(loc="upper left")
    return made
