"""What reports are written of in tests: a store, the folder of a run, the folder of a search."""

import json

import numpy as np
import torch

import streamseq as ss
from streamseq.training import save_checkpoint

HOSTILE = "</script><img src=x onerror=alert(1)> & \"quoted\" 'é' 测试 \u202e\x00"
FIELDS = {"time": ss.Field("int64"), "x": ss.Field("float32", (2,)), "label": ss.Field("uint8")}


def write_store(folder, **options):
    """Two versions, values, two kinds of boundaries, and an id that would like to be a script."""
    rng = np.random.default_rng(0)
    uri = folder / "plants.zarr"

    def sequence(length):
        time = 1_700_000_000 + np.cumsum(np.where(rng.random(length) < 0.02, 7200, 60))
        x = rng.standard_normal((length, 2)).astype(np.float32)
        x[::50, 1] = np.nan
        return {"time": time, "x": x, "label": rng.integers(0, 3, length).astype(np.uint8)}

    with ss.create(uri, FIELDS, **options) as writer:
        for number in range(30):
            writer.write(f"plant-{number}", **sequence(40 + 7 * number))
    with ss.append(uri) as writer:
        writer.write(HOSTILE.replace("\x00", ""), **sequence(1000))
    ss.mark(uri, "days", ss.splits.Calendar("time", every="day"))
    ss.mark(uri, "gaps", ss.splits.Gap("time", longer_than=3600))
    return uri


def write_run(folder, rows, *, settings=None, run=None, about=None):
    """The folder of a run with given metrics, and a checkpoint where there are settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings is not None:
        save_checkpoint(
            folder / "checkpoint.pt", settings=settings, run=run or {}, about=about or {}, model=torch.nn.Linear(1, 1)
        )
    return folder


def train_row(update, loss, **more):
    values = {"timesteps": 100 * update, "loss": loss, "bits": loss / np.log(2), "learning_rate": 0.01}
    values |= {"gradient_norm": 1.0, "seconds": 0.5 * update, "timesteps_per_second": 200.0}
    return {"event": "train", "update": update, **values, **more}


def held_row(update, loss):
    return {"event": "evaluate", "update": update, "timesteps": 50, "loss": loss, "bits": loss / np.log(2)}


def quadratic(candidate):
    """A loss that is least at k1 = 16, k2 = 64, told three times on the way."""
    loss = abs(np.log2(candidate.values["k1"]) - 4) + abs(np.log2(candidate.values["k2"]) - 6) + 1
    for step in (1, 2, 3):
        candidate.report(step, loss + 1 / step)
    return loss
