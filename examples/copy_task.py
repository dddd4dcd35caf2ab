"""The copy task of Aicher, Foti & Fox (2019): how far must back-propagation reach to learn to repeat?

    python examples/copy_task.py [UPDATES] [--adaptive]

A mark and nine random symbols of four are to be repeated ten timesteps later, one problem after the other. For each
loss to look back over at least K timesteps, with an update every k1 = K, k2 = 2K - 1, as in the paper. With K = 5 no
loss sees what it asks for: all that can be learned is the rhythm, perplexity 4 ** 0.45 = 1.866. From K = 10 on it can
be learned, in a minute or two for each K. `--adaptive` adds a K of at most 30, chosen while training.
"""

import itertools
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import streamseq as ss

torch.set_num_threads(1)  # a model this small is slower on two
UPDATES = int(next(filter(str.isdigit, sys.argv[1:]), 6_000))
LAG, SYMBOLS, LANES = 10, 6, 64  # symbol 0 is blank, 1 the mark
asked = np.random.default_rng(0).integers(2, SYMBOLS, (16_010, LAG))
asked[:, 0] = 1
x, y = (np.pad(asked, ((0, 0), blanks)).ravel() for blanks in ((0, LAG), (LAG, 0)))
store = ss.from_arrays({"problems": {"x": x, "y": y}})
TRAIN, TEST = [("problems", 0, 256_100)], [("problems", 256_100, 320_200)]  # runs that start at all places of a problem


def loss(outputs, window):
    return F.cross_entropy(outputs.transpose(1, 2), window["y"], reduction="none")  # [B, K]


def perplexity(k1: int, k2: int, **settings) -> float:
    torch.manual_seed(0)
    rnn, head = nn.LSTM(SYMBOLS, 50, num_layers=2, batch_first=True), nn.Linear(50, SYMBOLS)
    parameters = [*rnn.parameters(), *head.parameters()]

    def model(x, state):
        y, state = rnn(F.one_hot(x, SYMBOLS).float(), state)
        return head(y), state

    adam = torch.optim.Adam(parameters, lr=1e-2)
    stream = ss.StreamDataset(store, lanes=LANES, window=k1, layout="even", sequences=TRAIN)
    tbptt = ss.TBPTT(model, loss, k1=k1, k2=k2, inputs="x", **settings)
    for _ in itertools.islice((each for _ in itertools.count() for each in tbptt.updates(stream)), UPDATES):
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad()
    (test,) = ss.StreamDataset(store, lanes=LANES, window=1_002, layout="even", sequences=TEST)
    with torch.no_grad():
        return loss(model(test["x"], None)[0], test)[test.mask].mean().exp().item()


for k in (5, 10, 15, 20):
    print(f"K = {k:2}: test perplexity {perplexity(k, 2 * k - 1):.3f}", flush=True)
if "--adaptive" in sys.argv:
    print(f"adaptive: test perplexity {perplexity(10, 39, truncation=ss.truncation.Adaptive(bias=0.9)):.3f}")
