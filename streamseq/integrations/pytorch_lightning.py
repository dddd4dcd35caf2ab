"""PyTorch Lightning, of the package `pytorch_lightning`: streams as data, and TBPTT for a LightningModule."""

from __future__ import annotations

try:
    from pytorch_lightning import LightningDataModule, LightningModule
except ImportError as error:
    raise ImportError("training with Lightning needs pytorch_lightning: pip install streamseq[lightning]") from error

from streamseq.integrations.lightning_data import StreamData
from streamseq.integrations.lightning_module import StreamedTBPTT

__all__ = ["StreamDataModule", "TBPTTModule"]


class StreamDataModule(StreamData, LightningDataModule):  # type: ignore[misc]  # typed by the other package
    """Streams as a LightningDataModule; see `StreamData`."""


class TBPTTModule(StreamedTBPTT, LightningModule):  # type: ignore[misc]  # typed by the other package
    """A LightningModule that is trained by TBPTT(k1, k2); see `StreamedTBPTT`."""
