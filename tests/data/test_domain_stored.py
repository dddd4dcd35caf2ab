"""Streams over stored boundaries: the same windows as by the rules that found them."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import streamseq as ss
from streamseq.core.splits import Calendar, Change, Domain, Gap, Marker, Silence, Where

FIELDS = {name: ss.Field("int64") for name in ("x", "time", "event")}
RULES = {
    "days": Calendar("time", every="day", unit="h"),
    "gaps": Gap("time", longer_than=1),
    "marks": Marker("event", 1, after=True, reset=True),
    "changes": Change("event"),
    "sound": Silence("event", below=1, at_least=3, reset=True),
    "thirds": Where(lambda arrays: np.arange(0, len(arrays["x"]), 3), ["x"]),
    "several": [Gap("time", longer_than=1), Marker("event")],
}


@st.composite
def contents(draw):
    """`x` is distinct over all sequences and timesteps; some sequences are empty."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum))
    found = []
    for index, n in enumerate(lengths):
        steps = draw(st.lists(st.sampled_from([1, 1, 1, 1, 9]), min_size=n, max_size=n))
        events = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=n, max_size=n))
        found.append(
            {
                "x": 1000 * index + np.arange(1, n + 1),
                "time": np.cumsum(steps, dtype=np.int64),
                "event": np.array(events, np.int64),
            }
        )
    return found


@st.composite
def chosen(draw, lengths):
    """All sequences, or some spans of them, some of which are of the same sequence."""
    held = [index for index, n in enumerate(lengths) if n]
    if draw(st.booleans()):
        return None
    spans = []
    for index in draw(st.lists(st.sampled_from(held), min_size=1, max_size=4)):
        start = draw(st.integers(0, lengths[index] - 1))
        spans.append((f"s{index}", start, draw(st.integers(start + 1, lengths[index]))))
    return spans


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(st.data(), contents(), st.sampled_from(sorted(RULES)), st.sampled_from(["zarr", "arrow"]))
def test_windows_are_the_same_as_by_the_rules(tmp_path_factory, data, content, name, backend):
    uri = tmp_path_factory.mktemp("stored") / f"s.{backend}"
    with ss.create(uri, FIELDS, chunk_bytes=64, shard_bytes=1024) as writer:
        for index, each in enumerate(content):
            writer.write(f"s{index}", **each)
    ss.mark(uri, name, RULES[name])
    store = ss.open(uri)
    options = {
        "lanes": data.draw(st.integers(1, 4)),
        "window": data.draw(st.integers(1, 20)),
        "layout": data.draw(st.sampled_from(["sequences", "even"])),
        "shuffle": data.draw(st.booleans()),
        "lookahead": {"next": ("x", 1)},
        "sequences": data.draw(chosen([len(each["x"]) for each in content])),
    }
    stored, direct = (ss.StreamDataset(store, split=Domain(split), **options) for split in (name, RULES[name]))
    assert stored.plan.fingerprint == direct.plan.fingerprint
    assert len(stored) == len(direct)
    for left, right in zip(stored, direct, strict=True):
        assert left.token == right.token
        assert all(torch.equal(left[field], right[field]) for field in (*FIELDS, "next"))
        assert torch.equal(left.mask, right.mask)


def test_workers_and_resumed_streams_have_the_same_boundaries(tmp_path):
    with ss.create(tmp_path / "s.zarr", FIELDS) as writer:
        writer.write("a", x=np.arange(90), time=np.arange(90) * 5, event=np.arange(90) % 7 == 0)
    ss.mark(tmp_path / "s.zarr", "days", RULES["days"])
    stream = ss.StreamDataset(ss.open(tmp_path / "s.zarr"), 1, 4, split=Domain("days"))
    windows = [window["x"].tolist() for window in stream]
    assert len(windows) > 90 / 4
    assert [window["x"].tolist() for window in DataLoader(stream, batch_size=None, num_workers=2)] == windows
    state = stream[3].token.state_dict()
    later = ss.StreamDataset(ss.open(tmp_path / "s.zarr"), 1, 4, split=Domain("days"))
    later.load_state_dict(state)
    assert [window["x"].tolist() for window in later] == windows[4:]
    # Other boundaries under the same name are another plan, as the rules would be.
    ss.mark(tmp_path / "s.zarr", "days", {"a": [40]})
    other = ss.StreamDataset(ss.open(tmp_path / "s.zarr"), 1, 4, split=Domain("days"))
    with pytest.raises(ss.ResumeError):
        other.load_state_dict(state)


def test_lines_of_a_text_are_marked_by_a_value(tmp_path):
    text = b"one\ntwo words\n\nthree"
    with ss.create(tmp_path / "t.arrow", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.frombuffer(text, np.uint8))
    ss.mark(tmp_path / "t.arrow", "lines", Marker("x", ord("\n"), after=True))
    stream = ss.StreamDataset(ss.open(tmp_path / "t.arrow"), 1, 10, split=Domain("lines"))
    windows = [window["x"][0, : window.lengths[0]].numpy().tobytes() for window in stream]
    assert windows == [b"one\n", b"two words\n", b"\n", b"three"]
