"""A reader of stores written from docs/format.md alone, with nothing of streamseq: what the page leaves out shows here.

Every check that the page names is made; anything that does not fit is an AssertionError.
"""

import hashlib
import json
import re
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pyarrow as pa
import zarr

BLOCK = 65_536


def crc(data):
    return google_crc32c.value(bytes(data))


def hexa(number):
    return f"{number:08x}"


class PlainReader:
    """A version of a store.

    Args:
        root: The folder of the store.
        number: The version; None: the newest.
    """

    def __init__(self, root, number=None):
        self.root = Path(root)
        versions = {
            int(path.stem): path
            for path in (self.root / "versions").iterdir()
            if re.fullmatch(r"[0-9]{8,15}\.json", path.name)
        }
        self.document = json.loads(versions[number or max(versions)].read_text())
        claimed = self.document.pop("crc32c")
        canonical = json.dumps(self.document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert claimed == hexa(crc(canonical.encode()))
        assert (self.document["format"], self.document["format_version"]) == ("streamseq", 1)
        assert self.document["version"] == (number or max(versions))
        tables = self.document["tables"]
        self.sequences = [self._table(entry["sequences"]) for entry in tables]
        self.pieces = [self._table(entry["pieces"]) for entry in tables]
        self.indices = [self._table(entry["index"]) for entry in tables]
        self.ids = [id for table in self.sequences for id in table["id"].to_pylist()]
        self.attrs = [json.loads(text) for table in self.sequences for text in table["attrs"].to_pylist()]
        assert len(set(self.ids)) == len(self.ids) == self.document["sequences"]
        self._check_indices()

    def _table(self, entry):
        content = (self.root / "tables" / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"]
        assert entry["crc32c"] == "".join(
            hexa(crc(content[start : start + BLOCK])) for start in range(0, len(content), BLOCK)
        )
        reader = pa.ipc.open_file(content)
        assert reader.num_record_batches == 1
        batch = reader.get_batch(0)
        assert batch.num_rows == entry["rows"]
        return batch

    def _check_indices(self):
        first = 0
        for sequences, index in zip(self.sequences, self.indices, strict=True):
            ids = sequences["id"].to_pylist()
            hashes = index["hash"].to_numpy()
            numbers = index["sequence"].to_numpy()
            assert np.all(hashes[1:] >= hashes[:-1])
            assert sorted(numbers.tolist()) == list(range(first, first + len(ids)))
            assert [crc(ids[number - first].encode()) for number in numbers] == hashes.tolist()
            first += len(ids)

    def read(self, id):
        """All timesteps of a sequence: by field an array `[n, *shape]`."""
        number = self.ids.index(id)
        parts = {name: [] for name in self._fields()}
        for table in self.pieces:
            columns = (table[name].to_pylist() for name in ("sequence", "row", "length"))
            for sequence, row, length in zip(*columns, strict=True):
                if sequence == number:
                    for name in parts:
                        parts[name].append(self._rows(name, row, length))
        empty = {name: np.empty((0, *field["shape"]), field["dtype"]) for name, field in self._fields().items()}
        return {name: np.concatenate([empty[name], *arrays]) for name, arrays in parts.items()}

    def _fields(self):
        return {field["name"]: field for field in self.document["fields"]}

    def _rows(self, name, row, length):
        found, begin = [], 0
        for shard in self.document["shards"]:
            values = self._shard(shard, name)
            low, high = max(row, begin), min(row + length, begin + shard["timesteps"])
            if low < high:
                found.append(values[low - begin : high - begin])
            begin += shard["timesteps"]
        return np.concatenate(found)

    def _shard(self, shard, name):
        """All values of one field of a shard, every chunk checked and decoded by itself."""
        folder = self.root / "shards" / shard["id"]
        field, steps = self._fields()[name], shard["timesteps"]
        chunk_steps = min(field["chunk_timesteps"], steps)
        is_zarr = self.document["backend"] == "zarr"
        content = (folder / ("zarr.json" if is_zarr else "shard.json")).read_bytes()
        assert hexa(crc(content)) == shard["manifest_crc32c"]
        manifest = json.loads(content)
        if is_zarr:
            manifest = manifest["attributes"]["streamseq"]
        path = (
            folder / name / "/".join(["c", "0", *["0"] * len(field["shape"])]) if is_zarr else folder / f"{name}.arrow"
        )
        raw = path.read_bytes()
        assert len(raw) == shard["fields"][name]["bytes"]
        chunks = manifest["chunks"][name]
        assert len(chunks) == -(-steps // chunk_steps)
        decoded, ends, position = [], b"", 0
        for number, (offset, size, checksum) in enumerate(chunks):
            data = raw[offset : offset + size]
            assert hexa(crc(data)) == checksum
            ends += raw[position:offset]
            position = offset + size
            if is_zarr:
                assert raw[position : position + 4] == crc(data).to_bytes(4, "little")
                position += 4
            count = min(chunk_steps, steps - number * chunk_steps)
            decoded.append((self._zarr_chunk if is_zarr else self._arrow_chunk)(data, field, chunk_steps)[:count])
        ends += raw[position : len(raw) - 4] if is_zarr else raw[position:]
        assert hexa(crc(ends)) == manifest["ends_crc32c"][name]
        values = np.concatenate(decoded)
        assert hexa(crc(values.tobytes())) == shard["fields"][name]["crc32c"]
        return values

    def _zarr_chunk(self, data, field, chunk_steps):
        codec = field["stored_codec"]
        if codec == "zstd":
            data = numcodecs.Zstd().decode(data)
        elif codec != "none":
            data = numcodecs.Blosc().decode(data)
        return np.frombuffer(data, np.dtype(field["dtype"]).newbyteorder("<")).reshape(chunk_steps, *field["shape"])

    def _arrow_chunk(self, data, field, chunk_steps):
        kind = pa.from_numpy_dtype(np.dtype(field["dtype"]))
        if field["shape"]:
            kind = pa.fixed_shape_tensor(kind, field["shape"])
        schema = pa.schema([pa.field(field["name"], kind, nullable=False)])
        column = pa.ipc.read_record_batch(pa.py_buffer(data), schema).column(0)
        assert column.null_count == 0
        if field["shape"]:
            column = column.storage
            flat = column.flatten() if len(column) else column.values
            return flat.to_numpy(zero_copy_only=False).reshape(-1, *field["shape"])
        return column.to_numpy(zero_copy_only=False)

    def fingerprint(self, before, shards_before, tables_before):
        """The fingerprint that a version that was written to has to have, from that of the version before it."""
        added = self.document["shards"][shards_before:]
        (sequences,) = self.sequences[tables_before:]
        (pieces,) = self.pieces[tables_before:]
        document = {
            "before": before,
            "fields": [[field["name"], field["dtype"], field["shape"]] for field in self.document["fields"]],
            "shards": [
                [shard["timesteps"], {name: stored["crc32c"] for name, stored in shard["fields"].items()}]
                for shard in added
            ],
            "ids": _texts(sequences["id"].to_pylist()),
            "attrs": _texts(sequences["attrs"].to_pylist()),
            "pieces": hashlib.sha256(
                np.stack([pieces[name].to_numpy() for name in ("sequence", "row", "length")], axis=1)
                .astype("<i8")
                .tobytes()
            ).hexdigest(),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def opens_in_plain_zarr(self):
        """Whether zarr-python lists the shards and arrays that the version names; an Arrow store is not asked."""
        if self.document["backend"] == "arrow":
            return True
        group = zarr.open_group(self.root, mode="r")
        return all(
            set(group[f"shards/{shard['id']}"].array_keys()) == set(self._fields()) for shard in self.document["shards"]
        )


def _texts(texts):
    encoded = [text.encode() for text in texts]
    return hashlib.sha256(np.array([len(text) for text in encoded], "<i8").tobytes() + b"".join(encoded)).hexdigest()
