"""The recurrent layers that the reference models share: LSTM or GRU, by the same settings."""

from __future__ import annotations

from torch import Tensor, nn

CELLS = ("lstm", "gru")

State = Tensor | tuple[Tensor, ...]


def recurrent_layers(cell: str, inputs: int, hidden: int, layers: int, dropout: float) -> nn.LSTM | nn.GRU:
    """An `nn.LSTM` or `nn.GRU` over [B, K, inputs]; its state has the lanes on axis 1.

    Args:
        cell: "lstm" or "gru".
        inputs: Numbers a timestep.
        hidden: Units of a layer, H.
        layers: How many, L.
        dropout: Probability with which an element is dropped between layers.

    Raises:
        ValueError: The cell has another name, a size is less than 1, or the probability is not in [0, 1).
    """
    if cell not in CELLS:
        raise ValueError(f"a cell is one of {', '.join(CELLS)}, got {cell!r}")
    for name, size in (("inputs", inputs), ("hidden", hidden), ("layers", layers)):
        if size < 1:
            raise ValueError(f"{name} is at least 1, got {size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), got {dropout}")
    kind = nn.LSTM if cell == "lstm" else nn.GRU
    return kind(inputs, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
