"""A small gated linear attention with a short convolution, whose cache is changed in place; in pure torch.

The interface of flash-linear-attention: `model(x, past_key_values=None, use_cache=None) -> Output` with `logits` and
`past_key_values`, an object with a list of dicts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CHUNK = 4


def chunked_scan(q, k, v, g, initial_state=None, output_final_state=False):
    """S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = q_t S_t; q, k, g [B, T, N], v [B, T, M], S [B, N, M]."""
    state = q.new_zeros(q.shape[0], q.shape[2], v.shape[2]) if initial_state is None else initial_state
    outputs = []
    for q_, k_, v_, g_ in zip(*(each.split(CHUNK, 1) for each in (q, k, v, g)), strict=True):
        decay = g_.cumsum(1)
        inside = torch.tril((q_ * decay.exp()) @ (k_ * (-decay).exp()).transpose(1, 2))
        outputs.append((q_ * decay.exp()) @ state + inside @ v_)
        left = (decay[:, -1:] - decay).exp()
        state = state * decay[:, -1].exp()[..., None] + (k_ * left).transpose(1, 2) @ v_
    return torch.cat(outputs, 1), state if output_final_state else None


class Cache:
    """Changed in place by the layers."""

    def __init__(self):
        self.states = []
        self.seen_tokens = 0
        self.dtype = torch.float64

    def update(self, layer, timesteps=0, **tensors):
        if layer == len(self.states):
            self.states.append(dict(tensors))
        else:
            for name, tensor in tensors.items():
                self.states[layer][name].copy_(tensor)
        self.seen_tokens += timesteps


@dataclass
class Output:
    logits: torch.Tensor
    past_key_values: Any = None


class Layer(nn.Module):
    def __init__(self, index, size, width=3):
        super().__init__()
        self.index = index
        self.width = width
        self.conv = nn.Parameter(torch.randn(size, 1, width) * 0.5)
        self.qkvg = nn.Linear(size, 4 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x, cache):
        there = cache is not None and len(cache.states) > self.index
        before = cache.states[self.index] if there else None
        # [B, D, T]
        channels = x.transpose(1, 2)
        past = channels.new_zeros(*channels.shape[:2], self.width - 1) if before is None else before["conv"]
        longer = torch.cat([past, channels], 2)
        mixed = F.silu(F.conv1d(longer, self.conv, groups=len(self.conv))).transpose(1, 2)
        q, k, v, g = self.qkvg(mixed).chunk(4, -1)
        o, state = chunked_scan(
            q,
            k,
            v,
            F.logsigmoid(g) / 4,
            initial_state=None if before is None else before["recurrent"],
            output_final_state=True,
        )
        if cache is not None:
            cache.update(
                self.index, x.shape[1] * (self.index == 0), recurrent=state, conv=longer[..., 1 - self.width :]
            )
        return x + self.out(o)


class LinearAttention(nn.Module):
    def __init__(self, features=2, size=4, layers=2):
        super().__init__()
        self.embed = nn.Linear(features, size)
        self.layers = nn.ModuleList(Layer(index, size) for index in range(layers))
        self.head = nn.Linear(size, 1)

    def forward(self, x, past_key_values=None, use_cache=None):
        cache = past_key_values
        if use_cache and cache is None:
            cache = Cache()
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, cache)
        return Output(self.head(x).squeeze(-1), cache)


def make(seed=0):
    torch.manual_seed(seed)
    return LinearAttention().double()
