"""A reference trainer, and its parts for a loop of one's own.

The trainer is `train(store, out, settings)`. The same in a loop of one's own:

    >>> import tempfile, numpy as np, torch, streamseq as ss
    >>> from streamseq.training import ByteLanguageModel, evaluate, next_byte_loss, save_checkpoint
    >>> store = ss.from_arrays({f"{i}": {"x": np.arange(100, dtype=np.uint8)} for i in range(4)})
    >>> model = ByteLanguageModel(hidden=8)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> stream = ss.StreamDataset(store, lanes=2, window=16, lookahead={"target": ("x", 1)})
    >>> tbptt = ss.TBPTT(model, next_byte_loss, k1=16, k2=32, inputs="x")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for update in tbptt.updates(ss.StreamLoader(stream)):
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         if update.at_window_end:
    ...             parts = {"model": model, "optimizer": optimizer, "tbptt": tbptt, "stream": update.token}
    ...             save_checkpoint(folder + "/checkpoint.pt", **parts)
    >>> evaluate(model, next_byte_loss, stream).num_timesteps
    396
"""

from __future__ import annotations

from streamseq.training.build import TrainedModel, load_model, load_run
from streamseq.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from streamseq.training.evaluate import Evaluation, evaluate
from streamseq.training.forecast_model import ForecastModel
from streamseq.training.like import settings_like
from streamseq.training.model import ByteLanguageModel, LanguageModel, next_byte_loss
from streamseq.training.progress import Progress, ProgressBar, Reporter
from streamseq.training.redistribute import redistribute, redistribute_checkpoints
from streamseq.training.result import TrainingResult
from streamseq.training.settings import TrainingSettings
from streamseq.training.threads import choose_threads
from streamseq.training.trainer import NonFiniteLossError, train

__all__ = [
    "ByteLanguageModel",
    "Evaluation",
    "ForecastModel",
    "LanguageModel",
    "NonFiniteLossError",
    "Progress",
    "ProgressBar",
    "Reporter",
    "TrainedModel",
    "TrainingResult",
    "TrainingSettings",
    "choose_threads",
    "evaluate",
    "load_checkpoint",
    "load_model",
    "load_run",
    "next_byte_loss",
    "read_checkpoint",
    "redistribute",
    "redistribute_checkpoints",
    "save_checkpoint",
    "settings_like",
    "train",
]
