"""A training loop written by hand: streamed windows, and states that ss.Carry takes from each window to the next.

    python examples/carry_by_hand.py

Twelve noisy sines of different lengths on four lanes; the model predicts the next value. Where a sequence ends and
another one starts on its lane, the carry gives that lane the initial state and leaves the others alone.
"""

import numpy as np
import torch
from torch import nn

import streamseq as ss

torch.manual_seed(0)
torch.set_num_threads(1)  # a model this small is slower on two
rng = np.random.default_rng(0)
arrays = {}
for number in range(12):
    n = int(rng.integers(500, 1_500))
    wave = np.sin(np.arange(n) * rng.uniform(0.05, 0.2)) + 0.1 * rng.standard_normal(n)
    arrays[f"wave-{number}"] = {"x": wave.astype(np.float32)[:, None]}
store = ss.from_arrays(arrays)

waves = store.ids.to_pylist()
train = ss.StreamDataset(store, lanes=4, window=50, sequences=waves[:10], lookahead={"target": ("x", 1)})
held_out = ss.StreamDataset(store, lanes=2, window=50, sequences=waves[10:], lookahead={"target": ("x", 1)})

rnn, head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)
optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=3e-3)


def run(stream: ss.StreamDataset, learn: bool) -> float:
    """One epoch; the mean squared error over its valid timesteps."""
    carry = ss.Carry()  # each run has its own: validation does not touch the training states
    total, count = 0.0, 0
    for window in ss.StreamLoader(stream):
        state = carry.enter(window.token)
        y, state = rnn(window["x"], state)
        carry.leave(window.token, state)
        errors = (head(y) - window["target"]).square().squeeze(-1)[window.mask]
        if learn and len(errors):
            optimizer.zero_grad()
            errors.mean().backward()
            optimizer.step()
        total, count = total + float(errors.detach().sum()), count + len(errors)
    return total / count


for epoch in range(3):
    train.set_epoch(epoch)
    print(f"epoch {epoch}: train {run(train, True):.4f}", end="")
    with torch.no_grad():
        print(f"  held out {run(held_out, False):.4f}")
