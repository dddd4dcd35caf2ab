"""Random truncation on a task that short truncation gets wrong: influence balancing (Tallec & Ollivier 2017).

    python benchmarks/balancing.py [--steps 60000] [--mean 16] [--alpha 6] [--rate 1e-5] [--seeds 0]

The task is that of `examples/influence_balancing.py`: the best theta is -1/6, and every TBPTT(1, k2) with k2 < 41 leads
away from it. An update at each timestep, with cuts at each timestep (`every=1`) and a mean length of 16. Prints how
theta went, and ends with its mean over the last tenth of the steps. No time is measured.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from torch import nn

UNITS, UP = 23, 10


class Balance(nn.Module):
    """s' = A s + theta v, step by step; the output is the first unit."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.a = torch.eye(UNITS, dtype=torch.float64) / 2 + torch.diag(torch.full((UNITS - 1,), 0.5).double(), 1)
        self.v = torch.tensor([1.0] * UP + [-1.0] * (UNITS - UP), dtype=torch.float64)

    def initial_state(self, lanes: int) -> torch.Tensor:
        """Ones [lanes, UNITS]."""
        return torch.ones(lanes, UNITS, dtype=torch.float64)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first unit after each timestep, [B, K], and the state."""
        outputs = []
        for _ in range(x.shape[1]):
            state = state @ self.a.T + self.theta * self.v
            outputs.append(state[:, 0])
        return torch.stack(outputs, 1), state


def train(steps: int, mean: float, alpha: float, rate: float, seed: int) -> dict[str, float | list[float]]:
    """Theta after each tenth of the steps, and its mean over the last tenth."""
    import streamseq as ss

    store = ss.from_arrays({"nothing": {"x": np.zeros(steps, np.uint8)}})
    model = Balance()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    cuts = ss.truncation.Random(mean, alpha, every=1, seed=seed)
    tbptt = ss.TBPTT(model, lambda first, window: (first - 1) ** 2 / 2, k1=1, k2=None, inputs="x", truncation=cuts)
    thetas = []
    for _ in tbptt.updates(ss.StreamDataset(store, lanes=1, window=500)):
        optimizer.step()
        optimizer.zero_grad()
        thetas.append(model.theta.item())
    tenth = steps // 10
    return {
        "seed": seed,
        "steps": steps,
        "theta": [round(thetas[number], 4) for number in range(tenth - 1, steps, tenth)],
        "last_tenth": float(np.mean(thetas[-tenth:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--mean", type=float, default=16)
    parser.add_argument("--alpha", type=float, default=6)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        print(json.dumps(train(args.steps, args.mean, args.alpha, args.rate, seed)), flush=True)


if __name__ == "__main__":
    main()
