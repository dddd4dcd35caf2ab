"""Write your own arrays into a store, add to it later, and read it back with streamseq, zarr and numpy.

python examples/write_a_store.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr

import streamseq as ss

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
uri = folder / "plants.zarr"
rng = np.random.default_rng(0)

# A field is a variable with one entry a timestep: here 7 sensors, and a label.
fields = {"x": ss.Field("float32", (7,)), "label": ss.Field("uint8")}

with ss.create(uri, fields) as writer:
    # A whole sequence at once ...
    x = rng.standard_normal((10_000, 7), dtype=np.float32).cumsum(0)
    writer.write("plant-1", x=x, label=(x[:, 0] > 0).astype(np.uint8), attrs={"site": "north"})
    # ... or piece by piece, when it does not fit in memory.
    for _ in range(20):
        piece = rng.standard_normal((5_000, 7), dtype=np.float32)
        writer.append("plant-2", x=piece, label=np.zeros(5_000, np.uint8))
# Leaving the block made version 1. An exception in it would have left nothing.

with ss.append(uri) as writer:
    writer.append("plant-1", x=x[:500], label=np.ones(500, np.uint8))  # plant-1 goes on
    writer.write("plant-3", x=x[:800], label=np.ones(800, np.uint8))

store = ss.open(uri)
print(store)
for name, length in zip(store.ids.to_pylist(), store.lengths, strict=True):
    print(f"  {name}: {length:,} timesteps {store.attrs(name)}")
print("version 1 is still there:", ss.open(uri, version=1))

part = store.read("plant-1", start=9_998, stop=10_002, fields=["x"])
assert np.array_equal(part["x"], np.concatenate([x[9_998:], x[:2]]))

# What was written opens with plain zarr: one group a shard, one array a field.
shard = zarr.open_group(uri, mode="r")["shards"]
for name, group in shard.members():
    print(f"  shard {name[:8]}: x {group['x'].shape} {group['x'].dtype}")
