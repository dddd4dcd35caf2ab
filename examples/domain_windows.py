"""Windows that end where the data says: at midnight and at marked events, with a reset where the sensor was off.

    python examples/domain_windows.py

A sensor is read every ten minutes for three weeks. A new day ends a window, and the state goes on into it. Where the
sensor was off for more than an hour the state is worthless, and begins anew.
"""

import numpy as np
import torch

import streamseq as ss

torch.manual_seed(0)
rng = np.random.default_rng(0)
arrays = {}
for station in range(4):
    time = 1_700_000_000 + 600 * np.arange(3 * 7 * 144)
    on = rng.random(len(time) // 200 + 1).repeat(200)[: len(time)] > 0.15  # off for 33 hours now and then
    time = time[on]
    x = np.sin(2 * np.pi * time / 86_400) + 0.1 * rng.standard_normal(len(time))
    arrays[f"station-{station}"] = {"time": time, "x": x.astype(np.float32)[:, None]}
store = ss.from_arrays(arrays)

days = ss.splits.Calendar("time", every="day", unit="s", timezone="Europe/Vienna")
off = ss.splits.Gap("time", longer_than=3_600)  # resets, unless reset=False
split = ss.splits.Domain([days, off])
stream = ss.StreamDataset(store, lanes=4, window=64, split=split, fields=["x"], lookahead={"next": ("x", 1)})

tokens = [window.token for window in stream]
resets = sum(int(token.reset.sum()) for token in tokens)
held = sum(int((~token.idle).sum()) for token in tokens)
print(f"{stream.num_timesteps:,} timesteps in {held} windows of a lane, of which {resets} begin with a reset")

# The engine cuts windows where lanes stop: each lane goes on with the state of its own stop.
rnn = torch.nn.GRU(1, 1, batch_first=True)
tbptt = ss.TBPTT(rnn, lambda y, window: (y - window["next"]).square(), k1=64, k2=128, inputs="x")
optimizer = torch.optim.Adam(rnn.parameters(), lr=0.03)
for epoch in range(3):
    stream.set_epoch(epoch)
    losses = []
    for update in tbptt.updates(ss.StreamLoader(stream)):
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(update.loss))
    print(f"epoch {epoch}: {np.mean(losses):.4f}")

# By hand: the parts of a window, in each of which lanes stop at the end, or for good.
carry, ends = ss.Carry(lane_axis=1), 0
for window in stream:
    for part in window.parts():
        with torch.no_grad():
            outputs, state = rnn(part["x"], carry.enter(part.token))
        carry.leave(part.token, state)
    ends += int(window.token.final.sum())
print(f"by hand: {ends} states ended where a sequence or a break ended them")
