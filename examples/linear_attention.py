"""A gated linear attention with the interface of flash-linear-attention, trained by TBPTT as it is.

    python examples/linear_attention.py

The task: repeat the bit of 12 timesteps ago. The model takes and returns a cache, which it changes in place.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import streamseq as ss
from streamseq.integrations.adapt import check_state

torch.set_num_threads(1)
torch.manual_seed(0)
LAG, K = 12, 16
bits = {str(number): np.random.default_rng(number).integers(0, 2, 2_000) for number in range(64)}
store = ss.from_arrays({name: {"x": b, "target": np.roll(b, LAG).astype(np.float32)} for name, b in bits.items()})


class Cache:
    def __init__(self, conv: torch.Tensor, state: torch.Tensor) -> None:
        self.conv, self.state = conv, state

    def update(self, conv: torch.Tensor, state: torch.Tensor) -> "Cache":
        self.conv.copy_(conv), self.state.copy_(state)  # in place, as generation wants it
        return self


class LinearAttention(nn.Module):
    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(2, size), nn.Conv1d(size, size, LAG + 1, groups=size)
        self.qkv, self.gate, self.head = nn.Linear(size, 3 * size), nn.Linear(size, 1), nn.Linear(size, 1)

    def forward(self, x, past_key_values=None, use_cache=False):
        x, cache = self.embed(x), past_key_values
        zeros = x.new_zeros(len(x), LAG + x.shape[2], x.shape[2])
        past, state = (zeros[:, :LAG], zeros[:, LAG:]) if cache is None else (cache.conv, cache.state)
        longer = torch.cat([past, x], 1)
        q, k, v = self.qkv(F.silu(self.conv(longer.mT).mT)).chunk(3, -1)
        decay = F.logsigmoid(self.gate(x) + 2).cumsum(1)  # S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = q_t S_t
        o = decay.exp() * (q @ state) + torch.tril((decay - decay.mT).clamp(max=0).exp() * (q @ k.mT)) @ v
        new = longer[:, -LAG:], decay[:, -1:].exp() * state + (k * (decay[:, -1:] - decay).exp()).mT @ v
        cache = Cache(*new) if cache is None else cache.update(*new)
        return {"logits": self.head(o).squeeze(-1), "past_key_values": cache}


adapted = ss.adapt(model := LinearAttention())
check_state(adapted, torch.randint(2, (4, 40)))
tbptt = ss.TBPTT(adapted, lambda y, w: F.binary_cross_entropy_with_logits(y, w["target"], reduction="none"), k1=K, k2=K)
adam = torch.optim.Adam(model.parameters(), lr=1e-2)
for update in tbptt.updates(ss.StreamDataset(store, lanes=32, window=K)):
    adam.step()
    adam.zero_grad()
    loss = float(update.loss)
print(f"loss {loss:.4f} after {update.token.step + 1} windows of {K} timesteps, chance 0.6931")
