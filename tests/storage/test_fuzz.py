"""Any file of a store damaged, exchanged or forged: an error of ours or the right data, and nothing else."""

import json
import shutil
import struct

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.mending import MANIFESTS, blocks, seal
from support.small_store import SmallStore

from streamseq.storage.checksum import crc32c, to_hex
from streamseq.storage.shards.arrow_message import record_batch_values

# Nothing hangs.
pytestmark = pytest.mark.timeout(200)

fuzz = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["zarr", "arrow"])
def small(request):
    store = SmallStore(request.param)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def put_back(small):
    yield
    small.put_back()


def damage(data, small):
    """Do one thing to one file."""
    stored = [file for file in small.files if file.suffix != ".json"]
    path = data.draw(st.sampled_from(stored) | st.sampled_from(list(small.files)))
    if not path.is_file():
        return
    content = path.read_bytes()
    how = data.draw(
        st.sampled_from(["overwrite", "swap"])
        | st.sampled_from(["cut", "lengthen", "empty", "remove", "copy", "folder", "zeros", "shard"])
    )
    position = data.draw(st.integers(0, max(0, len(content) - 1)))
    if how == "overwrite":
        new = data.draw(st.binary(min_size=1, max_size=8))
        path.write_bytes(content[:position] + new + content[position + len(new) :])
    elif how == "cut":
        path.write_bytes(content[:position])
    elif how == "lengthen":
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=100)))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeros":
        path.write_bytes(bytes(len(content)))
    elif how == "remove":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "shard":
        shutil.rmtree(data.draw(st.sampled_from(sorted((small.root / "shards").glob("*-*")))), ignore_errors=True)
    else:
        # Rather one of its own kind: of another shard, version or field.
        alike = [
            other for other in small.files if other.suffix == path.suffix and other.parent.name == path.parent.name
        ]
        other = data.draw(st.sampled_from(alike) | st.sampled_from(list(small.files)))
        if other.is_file():
            path.write_bytes(other.read_bytes())
            if how == "swap":
                other.write_bytes(content)


@fuzz
@given(data=st.data())
def test_damaged_and_exchanged_files(small, data):
    small.put_back()
    for _ in range(data.draw(st.integers(1, 3))):
        damage(data, small)
    small.check(verify=True)


def numbers_of(value, keys=()):
    """The keys that lead to each number and checksum of a document."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_of(inner, (*keys, key))
    elif isinstance(value, int | float) or (isinstance(value, str) and len(value) == 8 and keys != ("crc32c",)):
        yield keys


def replace(document, keys, value):
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


def documents(small):
    """The JSON documents that a reader uses."""
    versions = sorted((small.root / "versions").glob("0*.json"))
    shards = sorted((small.root / "shards").glob("*-*/**/*.json"))
    return versions, shards


def seal_all(small, path):
    """Mend what depends on a file of a shard, in all versions."""
    if path.name not in MANIFESTS or path.parent.parent.name != "shards":
        return
    for version in documents(small)[0]:
        document = json.loads(version.read_bytes())
        for shard in document["shards"]:
            if shard["id"] == path.parent.name:
                shard["manifest_crc32c"] = to_hex(crc32c(path.read_bytes()))
        seal(version, document)


OTHER = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([True, False, None, "", "1", "00000000", "\ud800", [], [1], {}, {"a": 1}]),
)


@fuzz
@given(data=st.data())
def test_replaced_numbers_with_mended_checksums(small, data):
    small.put_back()
    versions, shards = documents(small)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(versions) | st.sampled_from(shards))
        document = json.loads(path.read_bytes())
        keys = data.draw(st.sampled_from(list(numbers_of(document)) or [None]))
        if keys is None:
            continue
        near = st.just(None)
        value = document
        for key in keys:
            value = value[key]
        if isinstance(value, int):
            near = st.sampled_from([value + 1, value - 1, 2 * value, -value, value // 2, value + 2**32])
        replace(document, keys, data.draw(near | OTHER))
        if path in versions:
            seal(path, document)
        else:
            path.write_text(json.dumps(document))
            seal_all(small, path)
    small.check(verify=True)


@fuzz
@given(data=st.data())
def test_forged_tables(small, data):
    """Their checksums are mended: what they say is believed as far as it can be, and breaks nothing."""
    small.put_back()
    path = data.draw(st.sampled_from(sorted((small.root / "tables").glob("*.arrow"))))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(
            st.binary(min_size=1, max_size=4)
            | st.integers(-(2**63), 2**63 - 1).map(lambda n: n.to_bytes(8, "little", signed=True))
        )
        content[position : position + len(new)] = new
    content = bytes(content[: path.stat().st_size])
    path.write_bytes(content)
    for version in documents(small)[0]:
        document = json.loads(version.read_bytes())
        for tables in document["tables"]:
            for entry in tables.values():
                if entry["file"] == path.name:
                    entry["crc32c"] = blocks(content)
        seal(version, document)
    small.read()


@fuzz
@given(data=st.data())
def test_forged_chunks(small, data):
    """Every checksum is mended: decoders are given whatever somebody made, and it is an error or some values."""
    small.put_back()
    folder = data.draw(st.sampled_from(sorted((small.root / "shards").glob("*-*"))))
    (path,) = (folder / name for name in MANIFESTS if (folder / name).exists())
    document = manifest = json.loads(path.read_bytes())
    for key in MANIFESTS[path.name]:
        manifest = manifest[key]
    name = data.draw(st.sampled_from(sorted(manifest["chunks"])))
    if small.root.suffix == ".arrow":
        file = folder / f"{name}.arrow"
    else:
        (file,) = (found for found in (folder / name / "c").rglob("0") if found.is_file())
    content = bytearray(file.read_bytes())
    chunk = data.draw(st.sampled_from(manifest["chunks"][name]))
    offset, size, _ = chunk
    for _ in range(data.draw(st.integers(1, 4))):
        # Rather in the header, where lengths and flags are.
        position = offset + data.draw(st.integers(0, min(size, 32) - 1) | st.integers(0, size - 1))
        content[position] = data.draw(st.integers(0, 255))
    crc = crc32c(bytes(content[offset : offset + size]))
    chunk[2] = to_hex(crc)
    if small.root.suffix == ".zarr":
        content[offset + size : offset + size + 4] = crc.to_bytes(4, "little")
    file.write_bytes(content)
    path.write_text(json.dumps(document))
    seal_all(small, path)
    small.read()


FUZZED = [test_damaged_and_exchanged_files, test_replaced_numbers_with_mended_checksums, test_forged_tables]
FUZZED.append(test_forged_chunks)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("test", FUZZED, ids=lambda test: test.__name__)
def test_the_same_for_longer(small, test):
    settings(fuzz, max_examples=1000)(given(data=st.data())(test.hypothesis.inner_test))(small=small)


def test_every_byte_of_an_arrow_message_is_checked_before_it_is_followed():
    batch = pa.record_batch([pa.array(range(10))], names=["x"])
    message = bytes(batch.serialize())
    found = set()
    for position, before in enumerate(message):
        for value in {0, 1, 127, 128, 255, before ^ 1, before ^ 16} - {before}:
            changed = message[:position] + bytes([value]) + message[position + 1 :]
            try:
                rows, begin, values = record_batch_values(memoryview(changed))
            except (ValueError, struct.error) as error:
                found.add(type(error))
            else:
                assert isinstance(rows, int)
                assert 0 <= begin <= begin + len(values) <= len(message)
    assert found == {ValueError, struct.error}
