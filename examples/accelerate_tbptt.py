"""TBPTT(4, 8) with Accelerate, in any number of processes, and a stop and resume by its checkpoints.

    python examples/accelerate_tbptt.py [FOLDER]
    accelerate launch --num_processes 2 examples/accelerate_tbptt.py FOLDER

The task: repeat the bit of 6 timesteps ago, at every timestep.
"""

import itertools
import sys
import tempfile

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

import streamseq as ss
from streamseq.integrations.accelerate import make_tbptt, rank_options, register

torch.set_num_threads(1)
FOLDER = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
bits = {str(number): np.random.default_rng(number).integers(0, 2, 600) for number in range(32)}
arrays = {name: {"x": b[:, None].astype("f4") - 0.5, "y": np.roll(b, 6).astype("f4")} for name, b in bits.items()}


def loss(outputs, window):
    return F.binary_cross_entropy_with_logits(outputs.sum(-1), window["y"], reduction="none")  # [B, K]


def fit(updates: int, resume: bool = False) -> float:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    stream = ss.StreamDataset(ss.from_arrays(arrays), lanes=16, window=4, shuffle=True, **rank_options(accelerator))
    loader = ss.StreamLoader(stream, device=accelerator.device)
    model = nn.GRU(1, 32, batch_first=True)
    model, adam = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=1e-2))
    tbptt = make_tbptt(accelerator, model, loss, k1=4, k2=8)
    register(accelerator, loader, tbptt)
    if resume:
        accelerator.load_state(FOLDER)
    for update in itertools.islice(tbptt.updates(loader), updates):
        adam.step()
        adam.zero_grad()
        last = float(update.loss)
    if updates == 100:
        accelerator.save_state(FOLDER)
    return last


fit(100)
straight, resumed = fit(300), fit(200, resume=True)
print(f"loss {straight:.6f} after 300 updates, and {resumed:.6f} when stopped after 100 and resumed")
assert straight == resumed
