"""Training loops that do the same updates on the same windows: by hand, and with the engine.

Each loop has its own model, from the same seed, and its own optimizer. A turn of it trains through all windows once,
from the initial state on, and returns the seconds that this took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Turn = Callable[[], float]
Loop = Callable[["Trained"], Turn]

OUTPUTS = 4
RATE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained on what.

    Args:
        hidden: Units of the LSTM.
        inputs: Channels of a timestep.
        lanes: B.
        k: Timesteps of a window and between updates.
        windows: Of a turn.
    """

    hidden: int
    inputs: int
    lanes: int
    k: int
    windows: int

    @property
    def timesteps(self) -> int:
        """Of a turn, over all lanes."""
        return self.lanes * self.k * self.windows


class Model(nn.Module):
    """An LSTM with a linear head: `[B, K, inputs] -> [B, K, OUTPUTS]`, and its state."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.rnn = nn.LSTM(setting.inputs, setting.hidden, batch_first=True)
        self.head = nn.Linear(setting.hidden, OUTPUTS)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs and the state after them."""
        y, state = self.rnn(x, state)
        return self.head(y), state


class Trained:
    """A model from a fixed seed, its optimizer, and windows that are in memory already.

    Args:
        setting: Sizes.
        windows: From `windows_of`.
    """

    def __init__(self, setting: Setting, windows: list[Any]) -> None:
        torch.manual_seed(0)
        self.setting = setting
        self.windows = windows
        self.model = Model(setting)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of all windows as one batch [B, n, D], for loops that cut it themselves."""
        x, target = (torch.cat([window[name] for window in self.windows], 1) for name in ("x", "target"))
        return x, target


def windows_of(setting: Setting) -> list[Any]:
    """The windows of sequences as long as a turn, one a lane, so that none is padded."""
    import streamseq as ss

    rng = np.random.default_rng(0)
    n = setting.k * setting.windows
    sizes = {"x": setting.inputs, "target": OUTPUTS}
    arrays = {
        str(lane): {name: rng.standard_normal((n, size), np.float32) for name, size in sizes.items()}
        for lane in range(setting.lanes)
    }
    return list(ss.StreamDataset(ss.from_arrays(arrays), lanes=setting.lanes, window=setting.k))


def by_hand(trained: Trained) -> Turn:
    """TBPTT(k, k): the loop with `detach`."""
    model, optimizer = trained.model, trained.optimizer

    def turn() -> float:
        begin = time.perf_counter()
        state = None
        for window in trained.windows:
            y, state = model(window["x"], state)
            F.mse_loss(y, window["target"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            state = tuple(part.detach() for part in state)
        return time.perf_counter() - begin

    return turn


def by_hand_twice(trained: Trained) -> Turn:
    """TBPTT(k, 2k) at the least cost of running the past again: two windows forward and backward for each new one."""
    model, optimizer = trained.model, trained.optimizer

    def turn() -> float:
        begin = time.perf_counter()
        start, before = None, None
        for window in trained.windows:
            state = start
            if before is not None:
                _, state = model(before["x"], state)
                start = tuple(part.detach() for part in state)
            y, _ = model(window["x"], state)
            F.mse_loss(y, window["target"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            before = window
        return time.perf_counter() - begin

    return turn


def _error(outputs: Tensor, window: Any) -> Tensor:
    # Each timestep counts once, as the mean over its outputs does by hand.
    return F.mse_loss(outputs, window["target"], reduction="none").mean(-1)


def _engine(trained: Trained, k2: int) -> Turn:
    import streamseq as ss

    model, optimizer = trained.model, trained.optimizer
    tbptt = ss.TBPTT(model, _error, k1=trained.setting.k, k2=k2, inputs="x")

    def turn() -> float:
        begin = time.perf_counter()
        for _ in tbptt.updates(trained.windows):
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - begin

    return turn


def engine(trained: Trained) -> Turn:
    """TBPTT(k, k) with the engine."""
    return _engine(trained, trained.setting.k)


def engine_twice(trained: Trained) -> Turn:
    """TBPTT(k, 2k) with the engine."""
    return _engine(trained, 2 * trained.setting.k)


def change_of(loop: Loop, setting: Setting, windows: list[Any]) -> Tensor:
    """What one turn of a loop adds to the parameters, end to end."""
    trained = Trained(setting, windows)
    before = [parameter.detach().clone() for parameter in trained.model.parameters()]
    loop(trained)()
    after = trained.model.parameters()
    return torch.cat([(new.detach() - old).flatten() for new, old in zip(after, before, strict=True)])


def check_same(loops: dict[str, Loop], setting: Setting, windows: list[Any]) -> None:
    """See that loops do the same updates.

    Raises:
        ValueError: They change the parameters differently. TBPTT(k, k) and TBPTT(k, 2k) differ by 0.006 of the change
            here, on inputs and targets that are noise; loops that do the same by rounding only.
    """
    wanted: Tensor | None = None
    for name, loop in loops.items():
        found = change_of(loop, setting, windows)
        wanted = found if wanted is None else wanted
        off = float((found - wanted).norm() / wanted.norm())
        if not off < 1e-4:
            raise ValueError(f"loops must do the same updates, {name}'s change of the parameters is off by {off:.2g}")
