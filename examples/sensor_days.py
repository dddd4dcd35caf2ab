"""Sensor readings from CSV to windows of days: one command, and six lines of Python.

    python examples/sensor_days.py [FOLDER]

The data is made like the public ETT sets (electricity transformers: hourly, six loads and the oil temperature): three
stations whose rows lie between each other's, in a file for each year.
"""

import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch

import streamseq as ss

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
channels = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
rng = np.random.default_rng(0)
for year in (2016, 2017):
    lines = [",".join(["date", "station", *channels])]
    for hour in range(24 * 60):
        date = datetime(year, 11, 15) + timedelta(hours=hour)
        for station in range(3):
            daily = np.sin(2 * np.pi * (date.hour + 3 * np.arange(7)) / 24)
            values = 10 * (1 + np.arange(7)) + 5 * daily + station + rng.standard_normal(7)
            lines.append(",".join([str(date), f"station-{station}", *(f"{value:.3f}" for value in values)]))
    (folder / f"ett-{year}.csv").write_text("\n".join(lines) + "\n")

# streamseq ingest table ett-*.csv --to ett.zarr --sequence station --timestamp date --unit s
command = f"ingest table {folder}/ett-*.csv --to {folder}/ett.zarr --sequence station --timestamp date --unit s --quiet"
subprocess.run([sys.executable, "-m", "streamseq", *command.split()], check=True)

store = ss.open(folder / "ett.zarr")
days, off = ss.splits.Calendar("time", every="day", unit="s"), ss.splits.Gap("time", longer_than=3_600)
split = ss.splits.Domain([days, off])  # the state goes on into a new day, and begins anew after a gap
stream = ss.StreamDataset(store, lanes=3, window=24, split=split, normalize=True, lookahead={"next": ("x", 1)})
for window in stream:
    x, target, mask = window["x"], window["next"], window.mask  # [3, 24, 7] twice, and bool [3, 24]

hours = torch.stack([window["time"] % 86_400 // 3_600 for window in stream])
values = torch.cat([window["x"].flatten(0, 1) for window in stream])
print(f"{len(stream)} windows of {x.shape[0]} stations, each a day from {hours.min()}:00 to {hours.max()}:00")
print(f"channels have means within {values.mean(0).abs().max():.4f} of 0, deviations near {values.std(0).mean():.4f}")
