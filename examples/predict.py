"""Streaming inference: a trained model over a whole store, its surprise at each timestep in a new store.

    python examples/predict.py

A model learns to predict the next value of thirty noisy waves. It then runs over these and ten more with carried state,
and its squared error at each timestep goes to a store of the same sequences. A fault in one of the ten stands out.
"""

import tempfile

import numpy as np
import torch
from torch import nn

import streamseq as ss

torch.manual_seed(0)
torch.set_num_threads(1)  # a model this small is slower on two
rng, arrays = np.random.default_rng(0), {}
for number in range(40):
    time = np.arange(rng.integers(500, 1_500))
    wave = np.sin(time * rng.uniform(0.05, 0.1)) + 0.05 * rng.standard_normal(len(time))
    arrays[f"wave-{number}"] = {"x": wave.astype(np.float32)[:, None]}
arrays["wave-33"]["x"][400] += 1.5
store = ss.from_arrays(arrays)


class NextValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y).squeeze(-1), state


def surprise(y, window):
    return {"surprise": torch.where(window.mask, errors(y, window), torch.nan)}


def errors(y, window):  # y[t] is about x[t+1]; at the last timestep there is none, and the mask is off
    return (y - window["next"].squeeze(-1)).square()


model, ahead = NextValue(), {"next": ("x", 1)}
train = ss.StreamDataset(store, lanes=10, window=50, sequences=store.ids[:30], lookahead=ahead)
tbptt = ss.TBPTT(model, errors, k1=50, k2=50)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(5):
    for _ in tbptt.updates(train):
        optimizer.step()
        optimizer.zero_grad()
with tempfile.TemporaryDirectory() as folder:
    for _ in range(2):  # the second time nothing is left to do; after a kill it would do what is left
        print(ss.predict(model, store, folder + "/s.zarr", outputs=surprise, lookahead=ahead, lanes=10))
    found = ss.open(folder + "/s.zarr")
    odd = max(found.ids[30:].to_pylist(), key=lambda id: np.nanmax(found.read(id)["surprise"]))
    print(f"most surprising: timestep {np.nanargmax(found.read(odd)['surprise']) + 1} of {odd}")
