"""Normalisation: values become (value - offset) / scale on their way into a window, channel by channel."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field
from streamseq.storage.interface import Store
from streamseq.storage.statistics.channels import Statistics

Float64 = NDArray[np.float64]

# Values that are computed with at a time: few enough that they stay in the processor's cache.
_VALUES = 1 << 14
_WAYS = ("standard", "range")


class Scale(NamedTuple):
    """How the values of a field are normalised: (value - offset) / scale.

    Args:
        offset: float64 [*D].
        scale: float64 [*D], none of them 0.
    """

    offset: Float64
    scale: Float64


def find_scales(store: Store, streamed: Sequence[str], normalize: object) -> dict[str, Scale]:
    """What `StreamDataset(normalize=...)` means.

    Args:
        store: The store.
        streamed: The fields that are streamed.
        normalize: None or False; True, names, or a mapping from names to "standard", "range", `(offset, scale)` or
            `Statistics`.

    Returns:
        Of each field that is normalised its offset and scale.

    Raises:
        KeyError: There is no such field.
        StoreError: The store has no statistics, and they are needed.
        TypeError, ValueError: It is something else; or an offset or a scale is none.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [1.0, 3.0]}})
        >>> scale = find_scales(store, ["x"], ss.statistics(store))["x"]
        >>> scale.offset.item(), scale.scale.item()
        (2.0, 1.0)
    """
    if normalize is None or normalize is False:
        return {}
    if isinstance(normalize, str):
        raise TypeError(f"normalize is True, a list or a mapping of names, got the string {normalize!r}: pass a list")
    wanted: dict[str, object]
    if normalize is True:
        wanted = {name: "standard" for name in streamed if store.fields[name].dtype.kind == "f"}
        if not wanted:
            raise ValueError(
                f"normalize=True is of floating fields, and none of {', '.join(streamed)} is one: name fields, "
                "integers too, in a list"
            )
    elif isinstance(normalize, Mapping):
        wanted = dict(normalize)
    elif isinstance(normalize, Iterable):
        wanted = dict.fromkeys(normalize, "standard")
    else:
        raise TypeError(f"normalize is True, a list or a mapping of names, got {normalize!r}")
    scales = {}
    for name, how in wanted.items():
        if name not in store.fields:
            raise KeyError(f"the store has fields {', '.join(store.fields)}, not {name!r}")
        field = store.fields[name]
        if isinstance(how, Statistics):
            # Statistics of a store are of all its fields, labels too.
            if name in streamed and field.dtype.kind == "f":
                scales[name] = _scale_of(name, field, how, "standard")
            continue
        if name not in streamed:
            raise ValueError(f"fields that are streamed are normalised: {', '.join(streamed)}; got {name!r}")
        if isinstance(how, str):
            if how not in _WAYS:
                raise ValueError(f"a field is normalised by {' or '.join(map(repr, _WAYS))}, got {how!r} for {name!r}")
            scales[name] = _scale_of(name, field, _kept(store, name), how)
        else:
            scales[name] = _given(name, field, how)
    return scales


def _kept(store: Store, name: str) -> Statistics:
    statistics = store.statistics
    if statistics is None:
        raise StoreError(
            f"normalize takes the statistics of the store, and {store.uri} version {store.version} has none: pass "
            "normalize=ss.statistics(store), or let `streamseq info STORE --compute` keep them with it"
        )
    if name not in statistics:
        raise ValueError(
            f"there are no statistics of {name!r}, which has very many numbers a timestep: pass "
            f"normalize={{{name!r}: (offset, scale)}}"
        )
    return statistics[name]


def _scale_of(name: str, field: Field, statistics: Statistics, how: str) -> Scale:
    if how == "standard":
        return _checked(name, field, statistics.mean, _not_zero(statistics.std))
    low = statistics.min.astype(np.float64)
    return _checked(name, field, low, _not_zero(statistics.max.astype(np.float64) - low))


def _not_zero(scale: Float64) -> Float64:
    """What is divided by: 1 where values do not differ."""
    return np.where(scale == 0, 1.0, scale)


def _given(name: str, field: Field, how: object) -> Scale:
    try:
        pair: Any = how
        offset, scale = (np.asarray(each, np.float64) for each in pair)
    except (TypeError, ValueError):
        raise TypeError(
            f"a field is normalised by 'standard', 'range', (offset, scale) or its Statistics, got {how!r} for {name!r}"
        ) from None
    return _checked(name, field, offset, scale)


def _checked(name: str, field: Field, offset: Float64, scale: Float64) -> Scale:
    try:
        offset, scale = (np.broadcast_to(each, field.shape).astype(np.float64) for each in (offset, scale))
    except ValueError:
        raise ValueError(
            f"offset and scale of {name!r} have its step shape {list(field.shape)} or fit it, got {list(offset.shape)} "
            f"and {list(scale.shape)}"
        ) from None
    if not (np.isfinite(offset).all() and np.isfinite(scale).all() and scale.all()):
        raise ValueError(
            f"an offset is a finite number and a scale one that is not 0, got {offset.tolist()} and {scale.tolist()} "
            f"for {name!r}: pass normalize={{{name!r}: (offset, scale)}}"
        )
    return Scale(offset, scale)


def digest(scales: Mapping[str, Scale]) -> str:
    """A hash of how fields are normalised."""
    made = hashlib.blake2b(digest_size=16)
    for name in sorted(scales):
        made.update(f"{name}\0".encode())
        for each in scales[name]:
            made.update(each.astype("<f8").tobytes())
    return made.hexdigest()


def emitted_dtype(field: Field, scale: Scale | None) -> np.dtype:
    """The dtype in which a field is emitted."""
    if scale is None or field.dtype == np.float64:
        return field.dtype
    return np.dtype(np.float32)


def normalise(values: NDArray[Any], into: NDArray[Any], scale: Scale) -> None:
    """Normalise values.

    Args:
        values: [..., *D], contiguous.
        into: Where they go: of the same shape, contiguous, float32 or float64; or `values` itself.
        scale: How. It is computed with in float64.
    """
    channels = math.prod(scale.offset.shape)
    times = max(1, _VALUES // channels)
    # Repeated: numpy takes many times as long where it goes through few channels at a time.
    offset, by = (np.tile(each.reshape(-1), times) for each in scale)
    work = np.empty(min(len(offset), values.size))
    source, target = values.reshape(-1), into.reshape(-1)
    # Memory that is padding holds anything.
    with np.errstate(all="ignore"):
        for start in range(0, len(source), len(offset)):
            part = source[start : start + len(offset)]
            count = len(part)
            np.subtract(part, offset[:count], out=work[:count])
            np.divide(work[:count], by[:count], out=target[start : start + count], casting="same_kind")


def normaliser(field: Field, scale: Scale | None) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """What makes of timesteps [n, *D] of a field those that are emitted."""

    def apply(values: NDArray[Any]) -> NDArray[Any]:
        if scale is None:
            return values
        into = np.empty(values.shape, emitted_dtype(field, scale))
        normalise(np.ascontiguousarray(values), into, scale)
        return into

    return apply
