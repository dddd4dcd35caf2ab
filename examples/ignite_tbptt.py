"""TBPTT(4, 8) with Ignite: training, streamed evaluation, and a stop and resume by its Checkpoint.

    python examples/ignite_tbptt.py [FOLDER]

The task: repeat the bit of 6 timesteps ago, at every timestep.
"""

import sys
import tempfile

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.nn import functional as F

import streamseq as ss
from streamseq.integrations.ignite import create_tbptt_evaluator, create_tbptt_trainer

torch.set_num_threads(1)
FOLDER = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
bits = {str(number): np.random.default_rng(number).integers(0, 2, 600) for number in range(48)}
arrays = {name: {"x": b[:, None].astype("f4") - 0.5, "y": np.roll(b, 6).astype("f4")} for name, b in bits.items()}
store = ss.from_arrays(arrays)
train_ids, val_ids = list(bits)[:32], list(bits)[32:]


def loss(outputs, window):
    return F.binary_cross_entropy_with_logits(outputs.sum(-1), window["y"], reduction="none")  # [B, K]


def fit(windows: int, resume: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.GRU(1, 32, batch_first=True)
    stream = ss.StreamDataset(store, lanes=16, window=4, sequences=train_ids, shuffle=True)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    trainer = create_tbptt_trainer(ss.TBPTT(model, loss, k1=4, k2=8), adam, stream)
    parts = {"model": model, **trainer.parts}
    saver = Checkpoint(parts, DiskSaver(FOLDER, require_empty=False), filename_pattern="at_100.pt")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=100), saver)
    if resume:
        Checkpoint.load_objects(parts, torch.load(f"{FOLDER}/at_100.pt", weights_only=True))
    trainer.run(trainer.data, max_iters=windows)
    return model


one, other = fit(300), fit(300, resume=True)
result = create_tbptt_evaluator(one, loss).run(ss.StreamDataset(store, lanes=16, window=4, sequences=val_ids)).metrics
same = all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
print(f"loss {result['loss']:.4f} held out; resumed after 100 windows: the same is {same}")
