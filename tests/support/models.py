"""Small stateful models, each with another kind of state."""

import torch
from torch import nn


class WithHead(nn.Module):
    """nn.LSTM (a tuple state) or nn.GRU (one tensor), and a linear head."""

    def __init__(self, kind, features=2, hidden=3, batch_first=True):
        super().__init__()
        self.rnn = getattr(nn, kind)(features, hidden, batch_first=batch_first)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y).squeeze(-1), state


class DictCell(nn.Module):
    """A cell written by hand with a nested dict state, lanes on the first axis of one leaf and the last of another."""

    def __init__(self, features=2, hidden=3, batch_first=True):
        super().__init__()
        self.inner = nn.Linear(features + hidden, hidden)
        self.slow = nn.Linear(hidden, 2)
        self.head = nn.Linear(hidden + 2, 1)
        self.time_axis = 1 if batch_first else 0
        self.hidden = hidden

    def forward(self, x, state):
        lanes = x.shape[1 - self.time_axis]
        if state is None:
            state = {"fast": x.new_zeros(lanes, self.hidden), "more": {"slow": x.new_zeros(2, lanes)}}
        fast, slow = state["fast"], state["more"]["slow"]
        outputs = []
        for step in x.unbind(self.time_axis):
            fast = torch.tanh(self.inner(torch.cat([step, fast], -1)))
            slow = 0.9 * slow + self.slow(fast).T
            outputs.append(self.head(torch.cat([fast, slow.T], -1)).squeeze(-1))
        return torch.stack(outputs, self.time_axis), {"fast": fast, "more": {"slow": slow}}


class LearnedStart(nn.Module):
    """A GRU whose initial state is a parameter."""

    def __init__(self, features=2, hidden=3):
        super().__init__()
        self.rnn = nn.GRU(features, hidden, batch_first=True)
        self.start = nn.Parameter(torch.linspace(-1, 1, hidden))

    def initial_state(self, lanes):
        return self.start.expand(1, lanes, -1).contiguous()

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return y.sum(-1), state


MODELS = {
    "lstm": lambda: WithHead("LSTM"),
    "gru": lambda: WithHead("GRU"),
    "dict": DictCell,
    "learned": LearnedStart,
}


def make(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().double()


def squared_error(outputs, window):
    return (outputs - window["y"]).square()
