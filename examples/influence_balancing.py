"""Which truncations lead the right way: influence balancing (Tallec & Ollivier 2017), where a short memory lies.

    python examples/influence_balancing.py

A line of 23 units hands its values on towards the first, which should be 1: s' = A s + theta v. The parameter pushes
the ten units nearby up and the thirteen behind them down. Looking back less than 41 timesteps one sees only the push
up, and raises theta; over all time the push is -6, and the best theta is -1/6. Which way an update goes depends on how
far each of its losses looks back, from k2 - k1 + 1 to k2 timesteps: (50, 100) arrives where (100, 100) does not, with
the same activations in memory.
"""

import numpy as np
import torch
from torch import nn

import streamseq as ss

UNITS, UP, LONGEST = 23, 10, 100


class Balance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        a = torch.eye(UNITS, dtype=torch.float64) / 2 + torch.diag(torch.full((UNITS - 1,), 0.5).double(), 1)
        v = torch.tensor([1.0] * UP + [-1.0] * (UNITS - UP), dtype=torch.float64)
        powers, pushed = [torch.eye(UNITS, dtype=torch.float64)], [torch.zeros(UNITS, dtype=torch.float64)]
        for _ in range(LONGEST):  # after d steps: s_d = A^d s_0 + theta (v + A v + ... + A^(d-1) v)
            pushed.append(pushed[-1] + powers[-1] @ v)
            powers.append(a @ powers[-1])
        self.powers, self.pushed = torch.stack(powers), torch.stack(pushed)

    def initial_state(self, lanes: int) -> torch.Tensor:
        return torch.ones(lanes, UNITS, dtype=torch.float64)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps = x.shape[1]
        first = state @ self.powers[1 : steps + 1, 0].T + self.theta * self.pushed[1 : steps + 1, 0]
        return first, state @ self.powers[steps].T + self.theta * self.pushed[steps]


print("   k1    k2   theta, from 0.5 to -0.1667")
for k1, k2 in [(10, 10), (50, 50), (100, 100), (25, 50), (10, 50), (20, 60), (50, 100), (70, 100)]:
    store = ss.from_arrays({"nothing": {"x": np.zeros(3_000 * k1, np.uint8)}})
    model = Balance()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tbptt = ss.TBPTT(model, lambda first, window: (first - 1) ** 2 / 2, k1=k1, k2=k2, inputs="x")
    updates = 0
    for _ in tbptt.updates(ss.StreamDataset(store, lanes=1, window=k1)):
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        theta = model.theta.item()
        if abs(theta + 1 / 6) < 5e-5 or theta > 1:
            break
    print(f"{k1:5} {k2:5}   {theta:7.4f} after {updates:5,} updates: {'there' if theta < 0 else 'the wrong way'}")
