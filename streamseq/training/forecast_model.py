"""The reference model for numbers: channels in, a forecast of channels out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from streamseq.training.recurrent import State, recurrent_layers


class ForecastModel(nn.Module):
    """LSTM or GRU over numbers, and beside it a linear map from the last timestep: forecasts of some channels.

    A value that is missing (NaN or infinite) is 0 to the layers, and a second input of each channel says so with a 1.
    The linear map starts as "the last value stays", and the other part at 0: a new model is that simple forecast, and
    learns what is to be learnt beyond it. The state is that of `nn.LSTM` (a pair) or `nn.GRU`, lanes on axis 1; None
    is zeros.

    Args:
        inputs: Channels C of a timestep, of all fields together.
        stays: For each channel that is forecast, its place among the inputs, or None where it is not one of them; D
            numbers.
        cell: "lstm" or "gru".
        hidden: Units of a layer, H.
        layers: Number of recurrent layers, L.
        dropout: Probability with which an element is dropped between layers and after the last.

    Raises:
        ValueError: The cell has another name, a size is less than 1, or the probability is not in [0, 1).

    Example:
        >>> model = ForecastModel(inputs=3, stays=[0, 1], hidden=8)
        >>> x = torch.tensor([[[1.0, 2.0, 3.0], [4.0, float("nan"), 6.0]]])
        >>> forecast, _ = model(x)
        >>> forecast.tolist()
        [[[1.0, 2.0], [4.0, 0.0]]]
    """

    def __init__(
        self,
        *,
        inputs: int,
        stays: Sequence[int | None],
        cell: str = "lstm",
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rnn = recurrent_layers(cell, 2 * inputs, hidden, layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, len(stays))
        self.last = nn.Linear(2 * inputs, len(stays), bias=False)
        with torch.no_grad():
            for parameter in (self.head.weight, self.head.bias, self.last.weight):
                parameter.zero_()
            for channel, place in enumerate(stays):
                if place is not None:
                    self.last.weight[channel, place] = 1

    def forward(self, fields: Tensor | Sequence[Tensor], state: State | None = None) -> tuple[Tensor, State]:
        """A forecast at each timestep.

        Args:
            fields: Normalised values, floats [B, K, *S] of each field, or of the only one.
            state: From the call before; None at the start.

        Returns:
            float32 [B, K, D], normalised, and the state, L x B x H each.
        """
        x = channels_of(fields)
        there = x.isfinite()
        x = torch.cat([torch.where(there, x, 0.0), (~there).float()], -1)
        hidden, state = self.rnn(x, state)
        return self.head(self.dropout(hidden)) + self.last(x), state


def channels_of(fields: Tensor | Sequence[Tensor]) -> Tensor:
    """The channels of fields, one after the other: of tensors [B, K, *S] one of float32 [B, K, C].

    Example:
        >>> list(channels_of([torch.zeros(2, 5), torch.zeros(2, 5, 2, 3)]).shape)
        [2, 5, 7]
    """
    each = [fields] if isinstance(fields, Tensor) else fields
    return torch.cat([values.reshape(*values.shape[:2], -1).float() for values in each], -1)
