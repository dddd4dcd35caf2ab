"""Exact BPTT through a long store: one gradient of 100,000 timesteps, in the memory of a segment of 500.

    python examples/exact_bptt.py [FOLDER]

The store is read twice: once forward, keeping only the state at each segment's border, and once backward, segment by
segment. The gradient is that of one graph over everything; a short stretch is checked against just that.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import streamseq as ss

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
timesteps = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
uri = folder / "walk.arrow"
rng = np.random.default_rng(0)
with ss.create(uri, {"x": ss.Field("float32", (4,))}) as writer:
    for start in range(0, timesteps, 50_000):
        writer.append("walk", x=rng.standard_normal((min(50_000, timesteps - start), 4), dtype=np.float32))

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.GRU(4, 32, batch_first=True).double()


def gradient(stop: int, segment: int) -> list[torch.Tensor]:
    """The gradient of the mean squared output over timesteps [0, stop), `segment` timesteps at a time."""
    stream = ss.StreamDataset(ss.open(uri), lanes=1, window=500, sequences=[("walk", 0, stop)])
    tbptt = ss.TBPTT(
        model,
        loss=lambda outputs, window: outputs.square(),
        k1=None,  # None is n: one update for the whole sequence ...
        k2=None,  # ... back-propagated to its start
        inputs=lambda window: window["x"].double(),
        segment=segment,
    )
    model.zero_grad()
    (update,) = tbptt.updates(stream)
    assert update.num_timesteps == stop
    return [parameter.grad.clone() for parameter in model.parameters()]


for a, b in zip(gradient(2_000, 500), gradient(2_000, 2_000), strict=True):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)

begin = time.perf_counter()
gradient(timesteps, 500)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"exact BPTT through {timesteps:,} timesteps: {time.perf_counter() - begin:.1f} s, peak memory {peak:,.0f} MiB")
