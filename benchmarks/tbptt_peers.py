"""The same updates with Ignite and Lightning, each in the way that its documentation shows; see `tbptt_loops`.

Both cut a batch that holds the sequences whole; neither has anything for k2 > k1.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

from tbptt_loops import Trained, Turn
from torch import Tensor, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader


def ignite(trained: Trained) -> Turn:
    """`create_supervised_tbptt_trainer`."""
    from ignite.contrib.engines import create_supervised_tbptt_trainer

    trainer = create_supervised_tbptt_trainer(
        trained.model, trained.optimizer, F.mse_loss, tbtt_step=trained.setting.k, dim=1
    )
    batch = trained.whole()

    def turn() -> float:
        begin = time.perf_counter()
        trainer.run([batch], max_epochs=1)
        return time.perf_counter() - begin

    return turn


def lightning(trained: Trained) -> Turn:
    """Manual optimization over the parts of a batch, which its guide recommends since `truncated_bptt_steps` is gone.

    Only training counts, not what `fit` prepares and cleans up.
    """
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.model = trained.model
            self.began = self.seconds = 0.0

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            state: Any = None
            for x, target in zip(*(part.split(trained.setting.k, dim=1) for part in batch), strict=True):
                y, state = self.model(x, state)
                self.manual_backward(F.mse_loss(y, target))
                optimizer.step()
                optimizer.zero_grad()
                state = tuple(part.detach() for part in state)

        def configure_optimizers(self) -> optim.Optimizer:
            return trained.optimizer

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.began

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, batches = Module(), DataLoader([trained.whole()], batch_size=None)

    def turn() -> float:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            # There are few batches, all in memory: no workers are wanted.
            warnings.simplefilter("ignore")
            trainer.fit(module, batches)
        return module.seconds

    return turn
