"""Data whose every value tells where it belongs, and the stores that the tests are run with."""

import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from support.s3 import Proxy, s3_server

import streamseq as ss

Arrays = dict[str, NDArray[Any]]
Make = Callable[..., Arrays]


def _values(field: ss.Field, first: int, steps: int) -> NDArray[Any]:
    """Values that are distinct over the whole test, as far as the dtype has so many."""
    size = math.prod(field.shape)
    numbers = np.arange(first * size, (first + steps) * size, dtype=np.int64)
    if field.dtype.kind == "b":
        numbers = (numbers * 2654435761 >> 7) & 1
    elif field.dtype.itemsize == 1:
        numbers = numbers % 127
    elif field.dtype.itemsize == 2:
        numbers = numbers % 2047
    return numbers.astype(field.dtype).reshape(steps, *field.shape)


@pytest.fixture(scope="session")
def make() -> Make:
    """`make(fields, first, steps)`: arrays of timesteps number `first` and on."""

    def arrays(fields: Mapping[str, ss.Field], first: int, steps: int) -> Arrays:
        return {name: _values(field, first, steps) for name, field in fields.items()}

    return arrays


@pytest.fixture(scope="session")
def same() -> Callable[[Arrays, Arrays], None]:
    """Assert that two sequences are the same, to the bit and in their dtypes."""

    def check(got: Arrays, wanted: Arrays) -> None:
        assert got.keys() == wanted.keys()
        for name, values in wanted.items():
            assert got[name].dtype == values.dtype
            assert got[name].shape == values.shape
            assert got[name].tobytes() == np.ascontiguousarray(values).tobytes()

    return check


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is asked of the disk, and in which order, is checked in test_durability.py; nothing else waits for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(params=["zarr", "arrow"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(tmp_path: Path, backend: str) -> Path:
    """Where a store of the backend may be created."""
    return tmp_path / f"store.{backend}"


@pytest.fixture(scope="session")
def proxy() -> Iterator[Proxy]:
    """A server of the S3 protocol, with a proxy before it that fails as it is told to."""
    with s3_server() as port:
        proxy = Proxy(port)
        yield proxy
        proxy.close()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of remote files lie in a folder of the test; what fails is tried again at once."""
    monkeypatch.setenv("STREAMSEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "20")
    monkeypatch.setattr("streamseq.storage.places.retrying._FIRST_PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def bucket(proxy: Proxy, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a new bucket; the connection is found by the environment, as users do it."""
    proxy.reset()
    for name, value in {
        "AWS_ENDPOINT_URL": proxy.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
    yield f"s3://{name}"
    proxy.reset()
