"""What the tests of other people's loops share: streams, a model with noise, and the plain loop."""

import numpy as np
import torch
from torch import nn

import streamseq as ss

LENGTHS = {"train": [50, 31, 44, 23, 37], "val": [22, 17, 9]}


def store(name="train"):
    rng = np.random.default_rng(len(name))
    return ss.from_arrays(
        {
            f"{name}-{i}": {"x": rng.standard_normal((n, 2)).astype("f4"), "y": rng.standard_normal(n).astype("f4")}
            for i, n in enumerate(LENGTHS[name])
        }
    )


def stream(name="train", rank=0, world_size=1, **options):
    options = {"lanes": 3, "window": 4, "shuffle": name == "train", **options}
    return ss.StreamDataset(store(name), rank=rank, world_size=world_size, **options)


class Network(nn.Module):
    """With dropout: what random generators give is part of a run."""

    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(3)
        self.rnn, self.dropout, self.head = nn.LSTM(2, 5, batch_first=True), nn.Dropout(dropout), nn.Linear(5, 1)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(self.dropout(y)).squeeze(-1), state


def loss(outputs, window):
    return (outputs - window["y"]).square()


def position(window):
    """What tells a window from every other."""
    token = window.token
    return token.epoch, token.step, token.sequence.tolist(), token.start.tolist(), window["x"].double().sum().item()


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def plain(epochs, *, clip=0.5, k1=4, k2=8, dropout=0.3, **options):
    """The plain loop: parameters, losses and windows."""
    model, source = Network(dropout), stream()
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    tbptt = ss.TBPTT(model, loss, k1=k1, k2=k2, **options)
    torch.manual_seed(11)
    losses, windows = [], []

    for epoch in range(epochs):
        source.set_epoch(epoch)
        for update in tbptt.updates(Seen(source, windows)):
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(float(update.loss))
    return dict(model.named_parameters()), losses, windows


class Seen(ss.StreamLoader):
    """A loader that notes which windows it hands out."""

    def __init__(self, source, seen):
        super().__init__(source)
        self.seen = seen

    def __iter__(self):
        for window in super().__iter__():
            self.seen.append(position(window))
            yield window


def assert_same_parameters(model, wanted):
    found = dict(model.named_parameters())
    assert set(found) == set(wanted)
    for name, parameter in found.items():
        assert torch.equal(parameter, wanted[name]), name
