"""Previews: the picture is drawn without a warning whatever the stream, and its numbers are those of the windows."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.data import preview as previewing
from streamseq.data import preview_picture
from streamseq.data.preview_picture import Picture

PNG = b"\x89PNG\r\n\x1a\n"


def store_of(lengths, ids=None, shape=()):
    ids = ids or [f"plant-{i}" for i in range(len(lengths))]
    return ss.from_arrays(
        {id: {"x": np.random.default_rng(n).standard_normal((n, *shape))} for id, n in zip(ids, lengths, strict=True)},
        {"x": ss.Field("float64", shape)},
    )


@pytest.fixture
def pictures(monkeypatch):
    """What was to be drawn, without drawing it."""
    drawn: list[Picture] = []
    monkeypatch.setattr(previewing, "draw_preview", lambda figure, path, picture: drawn.append(picture))
    return drawn


STREAMS = {
    "one long": (store_of([5000]), 4, 256, {"layout": "even"}),
    "one lane": (store_of([90, 30, 5]), 1, 10, {}),
    "more lanes than sequences": (store_of([90, 30]), 8, 16, {}),
    "packed": (store_of([5, 9, 1, 1, 7] * 20), 3, 16, {"tail": "pack"}),
    "dropped": (store_of([5, 90, 33]), 2, 16, {"tail": "drop"}),
    "as is": (store_of([5, 90, 33, 0]), 2, None, {"split": ss.splits.AsIs()}),
    "shuffled": (store_of(list(range(1, 60)), shape=(2, 3)), 8, 8, {"shuffle": True, "seed": 3}),
    "one timestep": (store_of([1]), 1, 1, {}),
    "very many": (store_of([2] * 30_000), 8, 4096, {"tail": "pack"}),
    "breaks": (
        store_of([100, 60]),
        2,
        16,
        {"split": ss.splits.Domain([{"plant-0": [7, 40, 41]}, ss.splits.At({"plant-1": [30]}, reset=True)])},
    ),
    "any id": (store_of([50] * 5, ["$x_1$", "植物", "a\nb", "🌱", "long " * 99]), 5, 16, {}),
    "numbers": (ss.from_arrays({"a": {"n": np.array([np.inf, np.nan, -np.inf, 1.0])}}), 1, 2, {}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_every_kind_of_stream_is_drawn(tmp_path, name):
    store, lanes, window, options = STREAMS[name]
    seen = ss.preview(ss.StreamDataset(store, lanes, window, **options), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)
    assert [each.name for each in tmp_path.iterdir()] == ["p.png"]
    assert str(seen).startswith(f"{seen.windows:,} windows")


@st.composite
def streams(draw):
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum))
    store = store_of(lengths)
    options = {"lanes": draw(st.integers(1, 4)), "window": draw(st.integers(1, 20)), "shuffle": draw(st.booleans())}
    kind = draw(st.sampled_from(["naive", "pack", "as is", "domain"]))
    if kind == "pack":
        options["tail"] = "pack"
    elif kind == "as is":
        options.update(window=None, split=ss.splits.AsIs())
    else:
        options["layout"] = draw(st.sampled_from(["sequences", "even"]))
    if kind == "domain":
        rules = [
            ss.splits.At(
                {
                    f"plant-{index}": sorted(draw(st.sets(st.integers(1, n - 1), max_size=5)))
                    for index, n in enumerate(lengths)
                    if n > 1
                },
                reset=reset,
            )
            for reset in (False, True)
        ]
        options["split"] = ss.splits.Domain(rules)
    return ss.StreamDataset(store, **options)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data(), streams())
def test_what_is_drawn_is_what_windows_hold(pictures, data, stream):
    first = data.draw(st.integers(0, len(stream) - 1))
    windows = data.draw(st.integers(1, 5))
    lane = data.draw(st.integers(0, stream.lanes - 1))
    seen = ss.preview(stream, "p.png", first=first, windows=windows, lane=lane)
    picture = pictures[-1]
    strips, boundaries = picture.strips, stream.plan.boundaries
    shown = [stream[step] for step in range(first, min(len(stream), first + windows))]
    assert seen.windows_drawn == len(shown)
    assert np.diff(picture.borders).tolist() == [window.num_steps for window in shown]
    assert np.array_equal(np.lexsort((strips.begin, strips.lane)), np.arange(len(strips.lane)))
    # The id and position at every emitted timestep of every lane, -1 where there is none, from both.
    drawn = np.full((stream.lanes, int(picture.borders[-1]), 2), -1)
    for row in range(len(strips.lane)):
        if strips.sequence[row] >= 0:
            begin, n = strips.begin[row], strips.stop[row] - strips.start[row]
            drawn[strips.lane[row], begin : begin + n, 0] = strips.sequence[row]
            drawn[strips.lane[row], begin : begin + n, 1] = np.arange(strips.start[row], strips.stop[row])
    held, resets = np.full_like(drawn, -1), 0
    values = np.full(held.shape[1], np.nan)
    for low, window in zip(picture.borders.tolist(), shown, strict=False):
        token = window.token
        resets += int(token.reset.sum()) if token.segments is None else int(token.segments["reset"].sum())
        rows = (
            [(i, 0, *(int(getattr(token, name)[i]) for name in ("sequence", "start", "stop"))) for i in token.lane]
            if token.segments is None
            else [tuple(map(int, segment))[:5] for segment in token.segments]
        )
        for i, offset, sequence, start, stop in rows:
            if sequence >= 0:
                at = low + offset
                held[i, at : at + stop - start] = np.stack([np.full(stop - start, sequence), np.arange(start, stop)], 1)
                if i == lane:
                    values[at : at + stop - start] = window["x"][i, offset : offset + stop - start]
    assert np.array_equal(drawn, held)
    assert seen.resets_drawn == resets
    assert seen.padding_timesteps_drawn == sum(
        int((strips.end - strips.begin)[row]) - int((strips.stop - strips.start)[row])
        for row in np.flatnonzero(strips.sequence >= 0)
    )
    assert seen.timesteps == sum(int(window.lengths.sum()) for window in stream)
    if boundaries is not None:
        inside = {
            (int(boundaries.sequence[slot]), int(position))
            for slot in range(len(boundaries.sequence))
            for position in boundaries.position[boundaries.first[slot] : boundaries.first[slot + 1]]
        }
        starts = [(int(s), int(t)) for s, t in zip(strips.sequence, strips.start, strict=True)]
        assert picture.boundary.tolist() == [start in inside for start in starts]
    if picture.values is None:
        assert np.isnan(values).all()
    else:
        line = np.full(len(values) + 1, np.nan)
        there = ~np.isnan(picture.values.values[:, 0])
        line[picture.values.times[there]] = picture.values.values[there, 0]
        assert np.array_equal(line[:-1], values, equal_nan=True)


def test_no_more_is_read_than_the_values_that_are_drawn(pictures, tmp_path, monkeypatch):
    with ss.create(tmp_path / "s.arrow", {"x": ss.Field("float32"), "y": ss.Field("int8")}) as writer:
        for name in "abcdef":
            writer.write(name, x=np.zeros(100, np.float32), y=np.zeros(100, np.int8))
    stream = ss.StreamDataset(ss.open(tmp_path / "s.arrow"), 2, 10)
    read, spans = type(stream.store).read, []
    monkeypatch.setattr(type(stream.store), "read", lambda self, *args: spans.append(args) or read(self, *args))
    ss.preview(stream, "p.png", first=8, windows=4, lane=1)
    assert spans == [(1, 80, 100, ["x"]), (3, 0, 20, ["x"])]
    ss.preview(stream, "p.png", field="y")
    assert pictures[-1].values.labels == ["y"]
    monkeypatch.setattr(previewing, "_MOST_VALUES", 9)
    ss.preview(stream, "p.png")
    assert pictures[-1].values is None


def test_a_lane_that_begins_beside_a_boundary_does_not_begin_at_it(pictures):
    for position, at in ((5, 1), (4, 0), (6, 0)):
        split = ss.splits.Domain({"plant-0": [position]})
        ss.preview(ss.StreamDataset(store_of([10]), 2, 8, split=split, layout="even"), "p.png")
        strips = pictures[-1].strips
        lane = pictures[-1].boundary[(strips.lane == 1) & (strips.start == 5)]
        assert lane.tolist() == [bool(at)]


def test_a_lane_without_timesteps_has_no_values(tmp_path):
    stream = ss.StreamDataset(store_of([30]), 3, 10)
    assert ss.preview(stream, tmp_path / "p.png", lane=2).sequences_drawn == 1


def test_fewer_windows_are_drawn_where_they_hold_too_much(pictures, monkeypatch):
    monkeypatch.setattr(previewing, "_MOST_PIECES", 40)
    stream = ss.StreamDataset(store_of([2] * 400), 4, 8, tail="pack")
    seen = ss.preview(stream, "p.png")
    assert (seen.windows_drawn, seen.lanes_drawn) == (2, 4)
    monkeypatch.setattr(previewing, "_MOST_PIECES", 10)
    seen = ss.preview(stream, "p.png")
    assert (seen.windows_drawn, seen.lanes_drawn) == (1, 2)
    with pytest.raises(ValueError, match=r"at most 10 pieces .* 3 windows of 4 lanes have 48"):
        ss.preview(stream, "p.png", windows=3)
    monkeypatch.setattr(previewing, "_MOST_PIECES", 3)
    with pytest.raises(ValueError, match="1 windows of 1 lanes have 4"):
        ss.preview(stream, "p.png")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"first": 10}, IndexError, "windows 0 to 9, got 10"),
        ({"first": -1}, IndexError, "got -1"),
        ({"lane": 2}, IndexError, "lanes 0 to 1, got 2"),
        ({"windows": 0}, ValueError, "1 to 256 windows, got 0"),
        ({"windows": 257}, ValueError, "got 257"),
        ({"field": "y"}, KeyError, "fields x, not 'y'"),
    ],
)
def test_what_there_is_not_is_not_drawn(tmp_path, options, error, match):
    stream = ss.StreamDataset(store_of([100, 100]), 2, 10)
    with pytest.raises(error, match=match):
        ss.preview(stream, tmp_path / "p.png", **options)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install streamseq\[plot\]"):
        ss.preview(ss.StreamDataset(store_of([9]), 1, 3), tmp_path / "p.png")


def test_long_lines_keep_their_extremes():
    values = np.zeros(100_000)
    values[[777, 50_000]] = [9, -9]
    values[10_000:20_000] = np.nan
    values[70_000] = np.nan
    times, thin = preview_picture._thinned(np.arange(len(values)), values)
    assert len(times) == len(thin) < 6000
    assert (np.nanmax(thin), np.nanmin(thin)) == (9, -9)
    assert np.isnan(thin[(times > 10_100) & (times < 19_900)]).all()
    # A gap of one is a gap.
    assert np.isnan(thin[(times > 69_900) & (times < 70_100)]).any()


def test_ids_are_shortened_to_what_there_is_room_for():
    letters = preview_picture._Letters()
    texts = [letters.fitting("plant-number-3", 12, 0, room) for room in (100, 60, 40, 20, 3)]
    assert texts[0] == "plant-number-3"
    assert texts[3:] == ["#12", ""]
    assert all("…" in text and text.startswith("p") and text.endswith("3") for text in texts[1:3])
    assert letters.fitting("plant", 12, 1500, 200) == "plant @ 1,500"
    assert letters.fitting("plant", 12, 1500, 30) == "plant"
    assert letters.fitting("植物", 12, 0, 200) == letters.fitting("a\nb", 12, 0, 200) == "#12"
