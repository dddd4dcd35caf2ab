"""What the byte language model of a checkpoint says about every byte of a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from streamseq.data.window import Window
from streamseq.storage.interface import Store
from streamseq.training.build import load_model
from streamseq.training.model import next_byte_loss
from streamseq.training.predict import PredictReport, open_input, predict
from streamseq.training.threads import available_cores, candidate_threads, choose_threads


def _nll(logits: Tensor, window: Window) -> Tensor:
    losses = next_byte_loss(logits, window)
    return torch.where(window.mask, losses, torch.nan).float()


def _entropy(logits: Tensor, window: Window) -> Tensor:
    chances = torch.log_softmax(logits, -1)
    return -(chances.exp() * chances).sum(-1).float()


def _likeliest(logits: Tensor, window: Window) -> Tensor:
    return logits.argmax(-1).to(torch.uint8)


def _logits(logits: Tensor, window: Window) -> Tensor:
    return logits.float()


_QUANTITIES: dict[str, Callable[[Tensor, Window], Tensor]] = {
    "nll": _nll,
    "entropy": _entropy,
    "likeliest": _likeliest,
    "logits": _logits,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteOutputs:
    """Fields of the logits of a byte language model, for `predict(outputs=)`. Those of timestep t are about x[t+1].

    - `nll`, float32: -ln p(x[t+1] | x[0], ..., x[t]) in nats, the model starting from its initial state before x[0].
      The last timestep of a sequence has no next byte, and is NaN. (The first byte is not predicted by anything.)
    - `entropy`, float32: of p(. | x[0], ..., x[t]), in nats; at the last timestep too.
    - `likeliest`, uint8: the byte with the highest probability.
    - `logits`, float32 [256].

    Args:
        names: Which of them.

    Raises:
        ValueError: There is none, or one has another name or is named twice.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        known = [name for name in self.names if name in _QUANTITIES]
        if not self.names or len(set(known)) != len(self.names):
            raise ValueError(
                f"what is predicted is one or more of {', '.join(_QUANTITIES)}, each once, got "
                f"{', '.join(self.names) or 'nothing'}"
            )

    def __call__(self, logits: Tensor, window: Window) -> dict[str, Tensor]:
        """The fields of a window.

        Args:
            logits: float [B, K, 256].
            window: Its "target" is the next byte.
        """
        return {name: _QUANTITIES[name](logits, window) for name in self.names}


def predict_bytes(
    store: Store | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    what: Sequence[str] = ("nll",),
    lanes: int = 32,
    window: int = 256,
    workers: int = 0,
    threads: int | None = None,
    backend: str | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PredictReport:
    """Run the model of a checkpoint of the trainer over a store, and write what it says about every byte.

    Args:
        store: A store, or where one lies, with the field that the model was trained on.
        checkpoint: A checkpoint that the trainer wrote.
        uri: Where to put the new store.
        what: Names of quantities, see `ByteOutputs`; they become the fields.
        lanes, window, workers, backend, restart, progress: See `predict`.
        threads: torch's threads in each process; None: the number with which the model is fastest, probed, at most a
            worker's share of the cores.

    Raises:
        ResumeError: It is no such checkpoint; or see `predict`.
        ValueError: The store has no such field of one byte a timestep, or something is named that there is not; or see
            `predict`.
    """
    outputs = ByteOutputs(names=tuple(what))
    model, settings = load_model(checkpoint)
    name = settings.field
    opened = open_input(store, uri, restart=restart)
    field = opened.fields.get(name)
    if field is None or field.dtype != np.uint8 or field.shape:
        has = ", ".join(f"{each} {field.dtype}{list(field.shape)}" for each, field in opened.fields.items())
        raise ValueError(
            f"the model of {checkpoint} reads the field {name!r} of uint8 with step shape (), {opened.uri} has {has}: "
            "pass a store with such a field"
        )
    return predict(
        model,
        opened,
        uri,
        outputs=outputs,
        inputs=name,
        lookahead={"target": (name, 1)},
        lanes=lanes,
        window=window,
        workers=workers,
        threads=threads or _probe_threads(model, lanes, window, workers),
        backend=backend,
        restart=restart,
        progress=progress,
    )


def _probe_threads(model: nn.Module, lanes: int, window: int, workers: int) -> int:
    share = max(1, available_cores() // max(1, workers))
    x = torch.zeros(lanes, min(256, window), dtype=torch.uint8)
    with torch.no_grad():
        return choose_threads(lambda: model(x), candidate_threads(share))
