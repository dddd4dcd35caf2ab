"""PyTorch Lightning, of the package `lightning`: streams as data, and TBPTT for a LightningModule."""

from __future__ import annotations

try:
    from lightning.pytorch import LightningDataModule, LightningModule
except ImportError as error:
    raise ImportError("training with Lightning needs lightning: pip install streamseq[lightning]") from error

from streamseq.integrations.lightning_data import StreamData
from streamseq.integrations.lightning_module import StreamedTBPTT

__all__ = ["StreamDataModule", "TBPTTModule"]


class StreamDataModule(StreamData, LightningDataModule):
    """Streams as a LightningDataModule; see `StreamData`."""


class TBPTTModule(StreamedTBPTT, LightningModule):
    """A LightningModule that is trained by TBPTT(k1, k2); see `StreamedTBPTT`."""
