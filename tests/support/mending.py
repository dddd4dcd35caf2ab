"""Changing what a store says as someone would who also mends every checksum, up to the version file."""

import json

import pyarrow as pa

from streamseq.storage.checksum import crc32c
from streamseq.storage.versions.version import BLOCK_BYTES, _document_crc, to_hex

#: What leads to the manifest of a shard in its file.
MANIFESTS = {"zarr.json": ("attributes", "streamseq"), "shard.json": ()}


def mend_version(store, keys, content, to=None, number=1):
    """Make the version file say something: under `keys` the crc32c of some bytes, or another value."""
    path = store / "versions" / f"{number:08d}.json"
    document = json.loads(path.read_bytes())
    entry = document
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = to if content is None else to_hex(crc32c(content))
    seal(path, document)


def seal(path, document):
    """Write a version document with the checksum that it has to have."""
    document = {name: value for name, value in document.items() if name != "crc32c"}
    path.write_text(json.dumps(document | {"crc32c": to_hex(_document_crc(document))}))


def mend_manifest(store, shard, change):
    """Change the manifest of a shard, by its number in version 1."""
    version = json.loads((store / "versions" / "00000001.json").read_bytes())
    folder = store / "shards" / version["shards"][shard]["id"]
    (path,) = (folder / name for name in MANIFESTS if (folder / name).exists())
    document = manifest = json.loads(path.read_bytes())
    for key in MANIFESTS[path.name]:
        manifest = manifest[key]
    change(manifest)
    path.write_text(json.dumps(document))
    mend_version(store, ("shards", shard, "manifest_crc32c"), path.read_bytes())


def mend_table(store, kind, change):
    """Give the only table of a kind other columns."""
    path = store / "versions" / "00000001.json"
    document = json.loads(path.read_bytes())
    entry = document["tables"][0][kind]
    table = store / "tables" / entry["file"]
    batch = pa.ipc.open_file(table.read_bytes()).get_batch(0)
    batch = pa.record_batch(change(batch), schema=batch.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    table.write_bytes(content)
    entry |= {"rows": batch.num_rows, "bytes": len(content), "crc32c": blocks(content)}
    seal(path, document)


def blocks(content):
    """The checksums of the blocks of a table."""
    return "".join(
        to_hex(crc32c(content[start : start + BLOCK_BYTES])) for start in range(0, len(content), BLOCK_BYTES)
    )
