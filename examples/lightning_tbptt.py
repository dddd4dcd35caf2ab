"""TBPTT(4, 8) for a LightningModule: training, streamed validation, and a stop and resume in the middle of an epoch.

    python examples/lightning_tbptt.py [FOLDER]

The task: repeat the bit of 6 timesteps ago, at every timestep.
"""

import logging
import sys
import tempfile

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import streamseq as ss
from streamseq.integrations.lightning import StreamDataModule, TBPTTModule

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)
FOLDER = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
bits = {str(number): np.random.default_rng(number).integers(0, 2, 600) for number in range(48)}
arrays = {name: {"x": b[:, None].astype("f4") - 0.5, "y": np.roll(b, 6).astype("f4")} for name, b in bits.items()}


class Repeat(TBPTTModule):
    def __init__(self):
        super().__init__(k1=4, k2=8, clip_norm=1.0)
        self.rnn, self.head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y).squeeze(-1), state

    def loss(self, outputs, window):
        return F.binary_cross_entropy_with_logits(outputs, window["y"], reduction="none")  # [B, K]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(updates: int, go_on_from: str | None = None) -> tuple[pl.Trainer, Repeat]:
    torch.manual_seed(0)
    train, val = (ss.from_arrays(dict(list(arrays.items())[part])) for part in (slice(32), slice(32, 48)))
    data = StreamDataModule(train=train, val=val, lanes=16, window=4, shuffle=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=updates, accelerator="cpu", logger=False, default_root_dir=FOLDER, **quiet)
    trainer.fit(module := Repeat(), data, ckpt_path=go_on_from)
    return trainer, module


fit(100)[0].save_checkpoint(f"{FOLDER}/stopped.ckpt")
(straight, one), (_, other) = fit(300), fit(300, f"{FOLDER}/stopped.ckpt")
same = all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
print(f"val_loss {float(straight.callback_metrics['val_loss']):.4f}; stopped after 100 and resumed: the same is {same}")
