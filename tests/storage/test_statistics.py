"""What is gathered of values piece by piece is what numpy says of all of them at once."""

import base64
import json
import math
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import streamseq as ss
from streamseq.storage.statistics import gather as module
from streamseq.storage.statistics.gather import FieldStatistics

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(module, "_count", None)
    else:
        assert module._count is not None


def values_of(dtype, shape):
    elements = arrays.from_dtype(np.dtype(dtype))
    if dtype == "float64":
        # Squares of larger ones are infinite.
        elements = st.floats(-1e100, 1e100) | st.sampled_from([math.nan, math.inf, -math.inf])
    return arrays.arrays(dtype, shape, elements=elements)


@given(data=st.data())
def test_pieces_say_what_all_of_it_says(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    values = data.draw(values_of(dtype, (data.draw(st.integers(0, 40)), *shape)))
    field = ss.Field(dtype, shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    gathered = FieldStatistics(field)
    for part in np.split(values, cuts):
        one = FieldStatistics(field)
        one.add(part)
        one = pickle.loads(pickle.dumps(one))
        gathered.merge(FieldStatistics.from_document(field, json.loads(json.dumps(one.document()))))
    check(gathered, values)


def check(gathered, values):
    summary = gathered.summary()
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    for channel in range(flat.shape[1]):
        column = flat[:, channel]
        plain = column.astype(np.uint8) if column.dtype.kind == "b" else column
        finite = plain[np.isfinite(plain)]
        assert summary.count.flat[channel] == len(finite)
        assert summary.missing.flat[channel] == np.isnan(plain).sum()
        assert summary.infinite.flat[channel] == np.isinf(plain).sum()
        if not len(finite):
            assert summary.mean.flat[channel] == summary.std.flat[channel] == 0
            continue
        assert summary.min.dtype == finite.dtype
        assert summary.min.flat[channel] == finite.min()
        assert summary.max.flat[channel] == finite.max()
        exact = [int(value) if finite.dtype.kind in "iu" else float(value) for value in finite]
        mean = math.fsum(exact) / len(exact) if finite.dtype.kind == "f" else sum(exact) / len(exact)
        spread = max(abs(value) for value in exact)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in exact) / len(exact)) if spread < 1e150 else None
        assert summary.mean.flat[channel] == pytest.approx(mean, rel=1e-12, abs=1e-12 * spread)
        if std is not None:
            assert summary.std.flat[channel] == pytest.approx(std, rel=1e-9, abs=1e-9 * spread)
        assert summary.histogram(channel).count.sum() == len(finite)
        for q in (0, 0.25, 0.5, 1):
            true = np.sort(finite)[max(1, math.ceil(q * len(finite))) - 1]
            found = summary.quantile(q).flat[channel]
            if column.dtype.itemsize <= 2 and column.dtype.kind in "biu":
                assert found == true
            elif abs(float(true)) < 3e38:
                assert found == pytest.approx(float(true), rel=2**-8, abs=1e-37)


def test_mean_of_values_far_from_zero_keeps_its_digits():
    field = ss.Field("float64")
    values = 1e9 + np.random.default_rng(3).normal(size=100_000)
    gathered = FieldStatistics(field)
    for part in np.array_split(values, 7):
        gathered.add(part)
    assert float(gathered.summary().std) == pytest.approx(values.std(), rel=1e-9)
    assert float(gathered.summary().mean) == pytest.approx(math.fsum(values) / len(values), rel=1e-15)


def test_values_of_sixteen_bits_are_exact():
    field = ss.Field("uint16")
    values = np.full(1 << 20, 65_535, np.uint16)
    values[:3] = (0, 1, 2)
    gathered = FieldStatistics(field)
    gathered.add(values)
    mean = (int(values.astype(np.int64).sum())) / len(values)
    assert float(gathered.summary().mean) == mean
    assert gathered.summary().quantile(3 / len(values)).item() == 2


def test_very_many_channels_have_moments_and_no_histogram():
    field = ss.Field("float32", (2000,))
    values = np.random.default_rng(0).normal(size=(50, 2000)).astype(np.float32)
    gathered = FieldStatistics(field)
    gathered.add(values)
    assert np.allclose(gathered.summary().mean, values.mean(0, dtype=np.float64), rtol=1e-12)
    with pytest.raises(ValueError, match="up to 1024 channels"):
        gathered.summary().quantile(0.5)
    again = FieldStatistics.from_document(field, json.loads(json.dumps(gathered.document())))
    assert np.array_equal(again.summary().std, gathered.summary().std)


def broken_documents():
    good = FieldStatistics(ss.Field("float32"))
    good.add(np.float32([1, 2]))
    document = good.document()
    empty = FieldStatistics(ss.Field("float32")).document()

    def pack(*arrays):
        return base64.b64encode(zlib.compress(b"".join(array.tobytes() for array in arrays))).decode()

    gaps, counts = np.array([70_000], "<u4"), np.array([1], "<i8")
    yield {}
    yield {**document, "shape": [2]}
    yield {**document, "dtype": "float64"}
    for cells in (None, 3, "?", "é", document["cells"][:-8], pack(gaps, counts), pack(gaps // 7, -counts), pack(gaps)):
        yield {**document, "cells": cells}
    yield {**document, "cells": pack(np.array([5, 0], "<u4"), np.array([1, 1], "<i8"))}
    yield {**document, "cells": empty["cells"]}
    yield {**document, "cells": base64.b64encode(zlib.compress(bytes(1 << 24))).decode()}
    for at, value in ((0, 1.5), (0, 3), (1, -1), (1, np.nan), (2, np.inf), (4, -1), (5, np.inf), (6, np.nan)):
        kept = good._kept.copy()
        kept[0, at] = value
        yield {**document, "moments": pack(kept)}
    yield {**document, "moments": pack(kept[:, :6])}


@pytest.mark.parametrize("document", list(broken_documents()))
def test_documents_that_are_none_are_refused(document):
    with pytest.raises(ValueError, match=r"statistics|they |values|cell"):
        FieldStatistics.from_document(ss.Field("float32"), document)


def test_sums_that_no_float_holds_are_told_and_not_warned_of():
    gathered = FieldStatistics(ss.Field("float64"))
    gathered.add(np.array([1.7e308, 1.7e308, -1.7e308]))
    other = FieldStatistics.from_document(gathered.field, json.loads(json.dumps(gathered.document())))
    other.merge(gathered)
    summary = other.summary()
    assert (summary.count, summary.max, np.isfinite(summary.mean)) == (6, 1.7e308, False)


def test_sixteen_bits_with_many_channels_have_quantiles_too():
    values = np.random.default_rng(0).integers(-9000, 9000, (500, 100)).astype(np.int16)
    gathered = FieldStatistics(ss.Field("int16", (100,)))
    gathered.add(values)
    assert np.array_equal(gathered.summary().min, values.min(0))
    assert np.allclose(gathered.summary().quantile(0.5), np.sort(values, 0)[249], rtol=2**-6)


def test_fields_that_differ_are_not_merged():
    with pytest.raises(ValueError, match="statistics of one field are merged"):
        FieldStatistics(ss.Field("float32")).merge(FieldStatistics(ss.Field("float32", (2,))))
