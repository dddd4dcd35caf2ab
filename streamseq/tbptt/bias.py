"""The bias of a truncation, measured: its gradient at fixed parameters beside the exact one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamseq.data.window import Window
from streamseq.tbptt.engine import TBPTT
from streamseq.tbptt.model import Inputs
from streamseq.tbptt.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """How far the gradient of TBPTT(k1, k2) over a stretch of data is from the exact one, parameters fixed.

    Args:
        k1, k2: Of the truncation.
        relative: ‖g_k2 - g‖ / ‖g‖, over all parameters together.
        cosine: Of the angle between g_k2 and g: below 0 the truncation leads away.
    """

    k1: int
    k2: int
    relative: float
    cosine: float


def measure_bias(
    model: nn.Module,
    loss: Callable[[Any, Window], Tensor],
    windows: Iterable[Window],
    *,
    k1: int,
    k2: Sequence[int],
    inputs: Inputs = "x",
    segment: int | None = None,
    lane_axis: Any = None,
) -> list[Bias]:
    """Compare the sum of the updates of TBPTT(k1, k2) with full back-propagation through the same windows.

    Both are sums over all timesteps: the truncations' gradients are weighted with their numbers of timesteps.
    Parameters, `.grad`, buffers and random generators are afterwards as they were. The model stays in its mode: take
    eval mode where noise, such as dropout, is not to be measured with it.

    Args:
        model: `model(inputs, state) -> (outputs, state)`, as for `TBPTT`.
        loss: `loss(outputs, window) -> [B, K]`, as for `TBPTT`.
        windows: A stream, or a list of windows, that can be read again and again, from resets.
        k1: Timesteps between updates.
        k2: Those that are compared, each at least `k1`.
        inputs, segment, lane_axis: As for `TBPTT`.

    Returns:
        One for each `k2`, in order.

    Raises:
        ValueError: A `k2` is less than `k1`, no parameter has a gradient, or the exact gradient is zero or not finite.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.sin(np.arange(64, dtype=np.float32))[:, None]}})
        >>> stream = ss.StreamDataset(store, lanes=1, window=8)
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.GRU(1, 4, batch_first=True)
        >>> few, many = measure_bias(model, lambda y, w: y.square(), stream, k1=8, k2=[8, 64])
        >>> few.relative > many.relative, round(many.cosine, 3)
        (True, 1.0)
    """
    engines = [TBPTT(model, loss, k1=k1, k2=each, inputs=inputs, segment=segment, lane_axis=lane_axis) for each in k2]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("a gradient needs a parameter that is trained, the model has none: set requires_grad")
    windows = windows if hasattr(windows, "__getitem__") else list(windows)
    exact = TBPTT(model, loss, k1=None, k2=None, inputs=inputs, segment=segment, lane_axis=lane_axis)
    kept = [parameter.grad for parameter in parameters]
    replay = Replay(model)
    moment = replay.moment()
    try:
        with replay.without_effect():
            whole, *truncated = [_gradient(engine, windows, parameters) for engine in (exact, *engines)]
    finally:
        replay.set_noise(moment.noise)
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
    norm = float(whole.norm())
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"a bias is relative to the exact gradient, whose norm is {norm}: measure where there is a finite loss "
            "that depends on the parameters"
        )
    return [
        Bias(
            k1=k1,
            k2=each,
            relative=float((gradient - whole).norm()) / norm,
            cosine=float(gradient @ whole) / (norm * float(gradient.norm()) or 1.0),
        )
        for each, gradient in zip(k2, truncated, strict=True)
    ]


def _gradient(tbptt: TBPTT, windows: Iterable[Window], parameters: list[nn.Parameter]) -> Tensor:
    """The gradient of the sum of all losses, float64 [P], as an engine's updates give it."""
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    with warnings.catch_warnings():
        # One update for windows in which no reset is common to all lanes: that is what is wanted here.
        warnings.filterwarnings("ignore", message="k1=n makes one update")
        updates = tbptt.updates(windows)
        _clear(parameters)
        for update in updates:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            total += update.num_timesteps * torch.cat([grad.detach().flatten().cpu().double() for grad in grads])
            _clear(parameters)
    return total


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
