"""Data whose every value tells where it belongs, and the stores that the tests are run with."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
