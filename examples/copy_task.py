"""The copy task of Aicher, Foti & Fox (2019): how far must back-propagation reach to learn to repeat?

    python examples/copy_task.py [TIMESTEPS]

A mark and nine random symbols of four are to be repeated ten timesteps later, one problem after the other. An update
every k1 = K, each loss looking back over K timesteps at least, takes k2 = 2K - 1. With K = 5 no loss sees what it asks
for: the best is the rhythm alone, perplexity 4 ** 0.45 = 1.866. From K = 10 on the symbols can be learned, in a minute
or two for each K. The last row chooses k2 while training, for a relative bias of 0.9.
"""

import itertools
import sys

import numpy as np
import torch
from torch import nn

import streamseq as ss

torch.set_num_threads(1)  # a model this small is slower on two
TIMESTEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 80_000  # that each lane is trained on
LAG, SYMBOLS, LANES = 10, 6, 64  # symbol 0 is blank, 1 the mark; lanes start at all places of a problem
asked = np.random.default_rng(0).integers(2, SYMBOLS, (16_010, LAG))
asked[:, 0] = 1
x, y = (np.pad(asked, ((0, 0), blanks)).ravel() for blanks in ((0, LAG), (LAG, 0)))
store = ss.from_arrays({"problems": {"x": x, "y": y}})


def loss(outputs, window):
    return nn.functional.cross_entropy(outputs.transpose(1, 2), window["y"], reduction="none")  # [B, K]


def perplexity(k1: int, k2: int, truncation=None) -> float:
    torch.manual_seed(0)
    rnn, head = nn.LSTM(SYMBOLS, 50, num_layers=2, batch_first=True), nn.Linear(50, SYMBOLS)
    rnn.bias_ih_l0.data[50:100] = rnn.bias_ih_l1.data[50:100] = 1  # forget gates that let gradients through

    def model(x, state):
        y, state = rnn(nn.functional.one_hot(x, SYMBOLS).float(), state)
        return head(y), state

    parameters, updates = [*rnn.parameters(), *head.parameters()], TIMESTEPS // k1
    adam = torch.optim.Adam(parameters, lr=1e-2)
    rate = torch.optim.lr_scheduler.LinearLR(adam, 1, 0.01, updates)
    stream = ss.StreamDataset(store, lanes=LANES, window=k1, layout="even", sequences=[("problems", 0, 256_100)])
    tbptt = ss.TBPTT(model, loss, k1=k1, k2=k2, inputs="x", truncation=truncation)
    for _ in itertools.islice(itertools.chain.from_iterable(map(tbptt.updates, itertools.repeat(stream))), updates):
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()
    (test,) = ss.StreamDataset(store, LANES, 1_002, layout="even", sequences=[("problems", 256_100, 320_200)])
    with torch.no_grad():
        return loss(model(test["x"], None)[0], test)[test.mask].mean().exp().item()


for k in (5, 10, 15, 20):
    print(f"K = {k:2}: test perplexity {perplexity(k, 2 * k - 1):.3f}", flush=True)
print(f"adaptive: test perplexity {perplexity(10, 40, ss.truncation.Adaptive(bias=0.9, every=400)):.3f}")
