"""TBPTT(k, k) against TBPTT(k, 2k) on arrays in memory, and a stop and resume in the middle of an epoch.

    python examples/tbptt_in_memory.py

The task: repeat the bit of 6 timesteps ago. With an update every 4 timesteps, TBPTT(4, 4) never back-propagates that
far and stays at chance, log 2 = 0.693; TBPTT(4, 8) does, and solves it.
"""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import streamseq as ss

torch.set_num_threads(1)  # a model this small is slower on two
LAG, K = 6, 4
arrays = {}
for number in range(64):
    bits = np.random.default_rng(number).integers(0, 2, 2_000)
    arrays[str(number)] = {"x": bits.astype(np.float32)[:, None] - 0.5, "target": np.roll(bits, LAG).astype(np.float32)}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y).squeeze(-1), state


def loss(outputs, window):
    return F.binary_cross_entropy_with_logits(outputs, window["target"], reduction="none")  # [B, K]


def train(k2: int, updates: int, saved: dict | None = None) -> tuple[float, dict]:
    """The last loss, and what to go on from."""
    torch.manual_seed(0)
    model, stream = Model(), ss.StreamDataset(ss.from_arrays(arrays), lanes=32, window=K, shuffle=True)
    tbptt = ss.TBPTT(model, loss, k1=K, k2=k2, inputs="x")
    parts = {"model": model, "adam": torch.optim.Adam(model.parameters(), lr=1e-2), "tbptt": tbptt, "stream": stream}
    for name, state in (saved or {}).items():
        parts[name].load_state_dict(state)
    for update in itertools.islice(tbptt.updates(stream), updates):
        parts["adam"].step()
        parts["adam"].zero_grad()
        last = float(update.loss)
    return last, {name: part.state_dict() for name, part in parts.items()}


print(f"TBPTT({K}, {K}): loss {train(K, 400)[0]:.4f} after 400 updates")
loss_straight, _ = train(2 * K, 400)
loss_resumed, _ = train(2 * K, 250, train(2 * K, 150)[1])
print(f"TBPTT({K}, {2 * K}): loss {loss_straight:.4f}, and {loss_resumed:.4f} when stopped after 150 and resumed")
assert loss_resumed == loss_straight
