"""The report of a store says what is in it, whatever that is."""

import uuid

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pages import Reader
from support.report_sources import HOSTILE

import streamseq as ss
from streamseq.report.lanes import lanes_section
from streamseq.report.markup import shown
from streamseq.report.spread import lengths_views, values_view
from streamseq.report.store import distances


def test_all_that_a_store_has_is_told(store, read):
    page, made = read(store)
    assert (made.kind, made.path) == ("store", str(store))
    opened = ss.open(store)
    assert page.facts["sequences"] == "31"
    assert page.facts["timesteps"] == f"{opened.num_timesteps:,}"
    assert page.facts["version"] == "4 of 4"
    assert [row[0] for row in page.tables["Versions, the newest first"][1:]] == ["4", "3", "2", "1"]
    assert [row[:3] for row in page.tables["Fields"][1:]] == [
        ["time", "int64", "–"],
        ["x", "float32", "[2]"],
        ["label", "uint8", "–"],
    ]
    quantiles = dict(page.tables["Quantiles of the lengths"][1:])
    assert (quantiles["least"], quantiles["median"], quantiles["greatest"]) == ("40", "145", "1,000")
    values = {row[0]: row for row in page.tables["Statistics of the values"][1:]}
    assert list(values) == ["time", "x[0]", "x[1]", "label"]
    assert values["x[1]"][2] == f"{sum(-(-length // 50) for length in opened.lengths.tolist()):,}"
    marked = {row[0]: row for row in page.tables["Stored boundaries"][1:]}
    assert marked["gaps"][1] == marked["gaps"][2] == f"{len(opened.boundaries('gaps')):,}"
    assert marked["days"][2] == "0"
    stream = ss.StreamDataset(opened, lanes=31, window=256)
    assert page.facts["windows of an epoch"] == str(len(stream))
    assert page.facts["idle lane-windows"] == f"{100 * (1 - stream.occupancy.busy):.1f} %"


def test_what_ids_say_is_text(store, read):
    page, _ = read(store)
    names = [tag for tag, _ in page.tags]
    assert "img" not in names
    assert names.count("script") == 3
    assert HOSTILE.replace("\u202e\x00", "\\u202e") in page.said
    assert "</script><img" not in page.source
    # Labels of charts are read as HTML, so there it is escaped once more.
    assert "<img" not in "".join(page.scripts[0]).replace("\\u003c", "<").replace("&lt;img", "")


def test_unseen_characters_are_shown():
    assert shown("a\u202eb\nc\ud800") == "a\\u202eb\\nc\\ud800"


def test_nothing_is_fetched(store, read):
    page, _ = read(store)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert not [attrs for _, attrs in page.tags if "src" in attrs]
    assert all(attrs["href"][0] == "#" or attrs["href"] == "data:," for _, attrs in page.tags if "href" in attrs)


def test_lanes_and_window_are_the_reader_s(store, read):
    page, _ = read(store, lanes=4, window=32)
    assert page.facts["lanes × window"] == "4 × 32"
    assert [row[:2] for row in page.tables["Other numbers of lanes, other windows"][1:]] == [
        [lanes, window] for lanes in ("1", "4", "16") for window in ("8", "32", "128")
    ]


def test_an_older_version_is_reported_as_it_was(store, read):
    page, _ = read(store, version=1)
    assert page.facts["sequences"] == "30"
    assert "Stored boundaries" not in page.tables


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1], [7, 7, 7], [0, 2, 900]])
def test_stores_with_little_in_them_are_reported(tmp_path, read, lengths):
    with ss.create(tmp_path / "little.arrow", {"x": ss.Field("float64")}) as writer:
        for number, length in enumerate(lengths):
            writer.write(f"s{number}", x=np.full(length, np.nan))
    page, _ = read(tmp_path / "little.arrow")
    assert page.facts["sequences"] == str(len(lengths))
    assert ("Nothing can be laid on lanes" in page.said) == (sum(lengths) == 0)


def test_without_statistics_it_says_how_to_get_them(tmp_path, read):
    with ss.create(tmp_path / "bare.zarr", {"x": ss.Field("uint8")}, statistics=False) as writer:
        writer.write("a", x=np.zeros(9, np.uint8))
    page, _ = read(tmp_path / "bare.zarr")
    assert "streamseq info STORE --compute" in page.said


def test_a_store_in_memory_needs_a_place_for_its_report(tmp_path, read):
    store = ss.from_arrays({"a": {"x": np.arange(10.0)}})
    with pytest.raises(ValueError, match="say where to write it"):
        ss.report(store)
    page, made = read(store)
    assert (made.kind, page.facts["sequences"]) == ("store", "1")


def test_a_store_in_object_storage_is_reported_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = f"memory://{uuid.uuid4().hex}"
    with ss.create(f"{root}/s.zarr", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.zeros(9, np.uint8))
    assert ss.report(f"{root}/s.zarr").out == "s.zarr.report.html"
    assert Reader(tmp_path / "s.zarr.report.html").facts["timesteps"] == "9"
    fsspec.filesystem("memory").rm(root, recursive=True)


@given(st.lists(st.integers(1, 6) | st.integers(1, 10**9), min_size=1, max_size=60))
def test_each_length_is_in_one_bin(lengths):
    values = np.array(lengths, np.int64)
    numbers, timesteps = (view.traces[0]["y"][:-1] for view in lengths_views(values, "sequences"))
    assert sum(numbers) == len(values)
    assert sum(timesteps) == values.sum()


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200))
def test_bytes_have_a_bin_each(values):
    store = ss.from_arrays({"a": {"x": np.array(values, np.uint8)}})
    view, beside = values_view(ss.statistics(store)["x"], 0, "")
    trace = view.traces[0]
    counted = dict(zip((np.array(trace["x"]) + 0.5).tolist(), trace["y"][:-1], strict=False))
    if not beside:
        there, count = np.unique(values, return_counts=True)
        assert {value: number for value, number in counted.items() if number} == dict(
            zip(there.tolist(), count.tolist(), strict=True)
        )
    assert sum(counted.values()) == pytest.approx((1 - beside) * len(values))


def test_values_far_from_the_others_do_not_squeeze_them():
    values = np.append(np.random.default_rng(0).standard_normal(5000), 1e9)
    view, beside = values_view(ss.statistics(ss.from_arrays({"a": {"x": values}}))["x"], 0, "")
    assert max(view.traces[0]["x"]) < 100
    assert beside == pytest.approx(1 / 5001)


def test_distances_between_boundaries_end_with_their_sequence(store):
    opened = ss.open(store)
    for name in ("days", "gaps"):
        found = opened.boundaries(name)
        each = [(found[index].positions, opened.length(index)) for index in range(len(opened))]
        wanted = [np.diff([0, *positions, length]) for positions, length in each if len(positions)]
        assert np.array_equal(distances(found), np.concatenate(wanted))


def test_the_picture_of_many_sequences_stays_small():
    rng = np.random.default_rng(0)
    arrays = {f"{number}": {"x": np.zeros(length, np.uint8)} for number, length in enumerate(rng.integers(1, 9, 3000))}
    section = lanes_section(ss.from_arrays(arrays), None, None)
    picture = next(part for part in section.parts if getattr(part, "title", "") == "What the first lanes hold")
    assert 100 < sum(len(trace["x"]) for trace in picture.views[0].traces) <= 1_200


def test_bars_of_the_picture_are_what_windows_hold():
    arrays = {name: {"x": np.zeros(length, np.uint8)} for name, length in (("a", 10), ("b", 6), ("c", 3))}
    section = lanes_section(ss.from_arrays(arrays), lanes=2, window=4)
    picture = next(part for part in section.parts if getattr(part, "title", "") == "What the first lanes hold")
    bars = {
        trace["name"]: sorted(zip(trace["y"], trace["base"], trace["x"], strict=True))
        for trace in picture.views[0].traces
    }
    assert bars == {
        "a sequence": [(0, 0, 10), (1, 0, 6)],
        "the next one": [(1, 8, 3)],
        "padding": [(0, 10, 2), (1, 6, 2), (1, 11, 1)],
        "idle": [],
    }
