"""Normalised streams: what numpy makes of the same windows, in every layout; and the numbers go with the position."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import streamseq as ss
from streamseq.data.before import read_before

FIELDS = {
    "x": ss.Field("float32", (3,)),
    "wide": ss.Field("float64"),
    "half": ss.Field("float16", (2,)),
    "sound": ss.Field("int16"),
    "label": ss.Field("int64"),
}
LOOKAHEAD = {"next": ("x", 1), "before": ("sound", -2)}

slow = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def values(sequence, n):
    """Timesteps that differ from each other and from zero, with a NaN and a channel that is always the same."""
    random = np.random.default_rng(sequence)
    x = random.normal(5000, 3, (n, 3)).astype(np.float32)
    x[:, 1] = 7
    x[n // 2 : n // 2 + 1, 0] = np.nan
    return {
        "x": x,
        "wide": random.normal(1e9, 1e-3, n),
        "half": random.normal(3, 1, (n, 2)).astype(np.float16),
        "sound": random.integers(-30_000, 30_000, n).astype(np.int16),
        "label": np.arange(n),
    }


def write(uri, lengths, **options):
    with ss.create(uri, FIELDS, chunk_bytes=128, shard_bytes=2048, **options) as writer:
        for number, n in enumerate(lengths):
            writer.write(f"s{number}", **values(number, n))
    return ss.open(uri)


@pytest.fixture(scope="module", params=["zarr", "arrow", "memory"])
def store(request, tmp_path_factory):
    lengths = (30, 7, 0, 55, 12)
    if request.param == "memory":
        return ss.from_arrays({f"s{number}": values(number, n) for number, n in enumerate(lengths)})
    return write(tmp_path_factory.mktemp("normalize") / f"store.{request.param}", lengths)


def by_hand(raw, there, offset, scale, dtype):
    made = ((raw.numpy().astype(np.float64) - offset) / scale).astype(dtype)
    made[~there.numpy()] = 0
    return made


@st.composite
def options(draw):
    tail = draw(st.sampled_from(["pad", "drop", "pack"]))
    split = draw(st.sampled_from(["naive", "asis", "domain"])) if tail == "pad" else "naive"
    made = {"lanes": draw(st.integers(1, 5)), "batch_first": draw(st.booleans()), "shuffle": draw(st.booleans())}
    if split == "domain":
        made["split"] = ss.splits.Domain({"s0": [3, 17], "s3": [20]})
    if split == "asis":
        return {**made, "split": ss.splits.AsIs()}
    layout = draw(st.sampled_from(["sequences", "even"]))
    return {**made, "window": draw(st.integers(1, 7 if tail == "drop" else 20)), "tail": tail, "layout": layout}


@slow
@given(options=options(), fields=st.sampled_from([None, ["x", "sound"], ["wide", "label"], ["half"]]))
@pytest.mark.filterwarnings("ignore:fewer sequences")
def test_windows_are_what_numpy_makes_of_them(store, options, fields):
    known = ss.statistics(store)
    given = {name: (known[name].mean, np.where(known[name].std == 0, 1, known[name].std)) for name in FIELDS}
    del given["label"]
    plain = ss.StreamDataset(store, fields=fields, lookahead=LOOKAHEAD, **options)
    chosen = {name: pair for name, pair in given.items() if name in plain.fields}
    stream = ss.StreamDataset(store, fields=fields, lookahead=LOOKAHEAD, normalize=chosen, **options)
    assert len(stream) == len(plain)
    for raw, window in zip(plain, stream, strict=True):
        assert torch.equal(raw.mask, window.mask)
        assert raw.token.start.tolist() == window.token.start.tolist()
        for name in window:
            emitted = stream.emitted[name]
            if emitted.field not in chosen:
                assert window[name].dtype == raw[name].dtype
                assert torch.equal(window[name], raw[name])
                continue
            dtype = np.float64 if emitted.field == "wide" else np.float32
            there = data_of(raw, emitted.offset, plain, store)
            assert window[name].numpy().dtype == dtype
            expected = by_hand(raw[name], there, *chosen[emitted.field], dtype)
            np.testing.assert_array_equal(window[name].numpy(), expected)


def data_of(window, offset, stream, store):
    """bool [B, K] or [K, B]: the timesteps that are no padding, of a tensor seen `offset` ahead."""
    there = torch.zeros(window.mask.shape, dtype=torch.bool)
    breaks = stream.plan.boundaries
    assert breaks is None or not breaks.breaks.any()
    segments = window.token.segments
    if segments is None:
        token = window.token
        rows = [
            (lane, 0, token.sequence[lane], token.start[lane], token.stop[lane]) for lane in range(len(token.sequence))
        ]
    else:
        rows = [tuple(row)[:5] for row in segments.tolist()]
    for lane, at, sequence, start, stop in rows:
        for position in range(start, stop):
            if 0 <= position + offset < store.lengths[sequence]:
                place = at + position - start
                there[(lane, place) if window.batch_first else (place, lane)] = True
    return there


@pytest.fixture
def disk(tmp_path):
    return write(tmp_path / "store.zarr", (40, 25))


def test_true_is_the_floating_fields_by_what_the_store_knows(disk):
    stream = ss.StreamDataset(disk, lanes=2, window=8, lookahead=LOOKAHEAD, normalize=True)
    assert sorted(stream.normalization) == ["half", "wide", "x"]
    known = disk.statistics
    for name, (offset, scale) in stream.normalization.items():
        assert offset.shape == scale.shape == FIELDS[name].shape
        assert np.array_equal(offset, known[name].mean)
    assert stream.normalization["x"].scale[1] == 1
    emitted = torch.cat([window["x"][window.mask] for window in stream])
    assert torch.all(emitted[:, 1] == 0)
    assert abs(float(emitted[:, 2].mean())) < 0.2
    assert 0.8 < float(emitted[:, 2].std()) < 1.2


def test_a_list_names_integers_too_and_range_is_from_zero_to_one(disk):
    stream = ss.StreamDataset(disk, lanes=2, window=8, normalize=["sound"])
    assert list(stream.normalization) == ["sound"]
    assert stream[0]["sound"].dtype == torch.float32
    stream = ss.StreamDataset(disk, lanes=2, window=8, normalize={"sound": "range", "label": (0, 2)})
    everything = torch.cat([window["sound"][window.mask] for window in stream])
    assert (float(everything.min()), float(everything.max())) == (0, 1)
    assert stream[0]["label"][0, :3].tolist() == [0, 0.5, 1]


def test_statistics_of_a_subset_leave_labels_and_the_other_sequences_alone(disk):
    train = ss.statistics(disk, sequences=[("s0", 0, 20)])
    stream = ss.StreamDataset(disk, lanes=1, window=8, fields=["x", "label"], normalize=train)
    assert list(stream.normalization) == ["x"]
    expected = disk.read("s0", 0, 20)["x"][:, 2].astype(np.float64).mean()
    assert stream.normalization["x"].offset[2] == pytest.approx(expected, rel=1e-12)
    again = ss.StreamDataset(disk, lanes=1, window=8, fields=["x", "label"], normalize=stream.normalization)
    assert again.plan.fingerprint == stream.plan.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_threads_read_the_same(disk, workers):
    stream = ss.StreamDataset(disk, lanes=2, window=8, lookahead=LOOKAHEAD, normalize=["x", "sound", "half"])
    expected = [stream[t] for t in range(len(stream))]
    for loader in (DataLoader(stream, batch_size=None, num_workers=workers), ss.StreamLoader(stream, prefetch=3)):
        for window, other in zip(loader, expected, strict=True):
            for name in other:
                assert torch.equal(torch.nan_to_num(window[name]), torch.nan_to_num(other[name])), name
    copy = pickle.loads(pickle.dumps(stream))
    assert torch.equal(copy[1]["sound"], expected[1]["sound"])


def test_predictions_are_turned_back(disk):
    stream = ss.StreamDataset(disk, lanes=2, window=8, lookahead=LOOKAHEAD, normalize=["x", "sound"])
    plain = ss.StreamDataset(disk, lanes=2, window=8, lookahead=LOOKAHEAD)
    for name in ("x", "next", "before", "wide"):
        window, raw = stream[0], plain[0]
        back = stream.denormalize(name, window[name])
        assert back.dtype == window[name].dtype
        mask = window.mask
        torch.testing.assert_close(back[mask].double(), raw[name][mask].double(), rtol=1e-3, atol=1e-2, equal_nan=True)
    assert stream.denormalize("sound", np.zeros(2)) == pytest.approx(float(disk.statistics["sound"].mean))
    with pytest.raises(KeyError, match="emits"):
        stream.denormalize("nothing", 1)


def test_a_position_goes_on_with_the_same_numbers_only(disk):
    options = {"lanes": 2, "window": 8, "fields": ["x"]}
    stream = ss.StreamDataset(disk, normalize=True, **options)
    state = stream[1].token.state_dict()
    ss.StreamDataset(disk, normalize={"x": "standard"}, **options).load_state_dict(state)
    ss.StreamDataset(disk, normalize=stream.normalization, **options).load_state_dict(state)
    offset, scale = stream.normalization["x"]
    other = ss.StreamDataset(disk, normalize={"x": (np.nextafter(offset, 9e9), scale)}, **options)
    for wrong in (other, ss.StreamDataset(disk, **options)):
        names = f"plan {stream.plan.fingerprint[:12]}.*plan {wrong.plan.fingerprint[:12]}.*numbers of normalize"
        with pytest.raises(ss.ResumeError, match=names):
            wrong.load_state_dict(state)


def test_without_it_nothing_of_the_plan_changes(disk):
    plain = ss.StreamDataset(disk, lanes=2, window=8)
    assert plain.plan.contents == disk.fingerprint
    assert ss.StreamDataset(disk, lanes=2, window=8, normalize={}).plan.fingerprint == plain.plan.fingerprint


def test_a_stream_keeps_its_numbers_when_the_store_grows(disk, tmp_path):
    stream = ss.StreamDataset(disk, lanes=2, window=8, fields=["x"], normalize=True)
    before = stream.normalization["x"].offset
    with ss.append(tmp_path / "store.zarr") as writer:
        writer.write("more", **values(9, 20))
    assert stream.refresh()
    assert np.array_equal(stream.normalization["x"].offset, before)
    assert not np.array_equal(ss.open(tmp_path / "store.zarr").statistics["x"].mean, before)


def test_what_lies_before_a_window_is_normalised_too(disk):
    options = {"lanes": 1, "window": 8, "fields": ["x", "sound"]}
    stream = ss.StreamDataset(disk, normalize=["x", "sound"], **options)
    before = read_before(stream, stream[1], 5)
    for name in ("x", "sound"):
        assert torch.equal(torch.nan_to_num(before[name][0]), torch.nan_to_num(stream[0][name][0, 3:]))


def test_memory_holds_what_is_converted_too(tmp_path):
    store = write(tmp_path / "store.arrow", (4000,))
    stream = ss.StreamDataset(store, lanes=1, window=4, fields=["sound"], memory=9000, normalize=["sound"])
    reader = stream.open_reader(ahead=1)
    held = [reader.read(request) for request in reader.requests(range(len(stream)))][-3:]
    assert len(stream) > sum(block.num_windows for block in held)
    assert reader.memory_bytes <= 9000
    reader.close()


@pytest.mark.parametrize(
    ("normalize", "error", "says"),
    [
        ("x", TypeError, "pass a list"),
        (3, TypeError, "True, a list or a mapping"),
        (["nothing"], KeyError, "the store has fields"),
        (["label"], ValueError, "fields that are streamed"),
        ({"x": "best"}, ValueError, "'standard' or 'range'"),
        ({"x": 3}, TypeError, r"\(offset, scale\)"),
        ({"x": (0, 0)}, ValueError, "not 0"),
        ({"x": (np.nan, 1)}, ValueError, "finite"),
        ({"x": ([1, 2], 1)}, ValueError, "step shape"),
    ],
)
def test_what_is_no_normalisation_is_refused(disk, normalize, error, says):
    with pytest.raises(error, match=says):
        ss.StreamDataset(disk, lanes=2, window=8, fields=["x"], normalize=normalize)


def test_true_needs_a_floating_field(disk):
    with pytest.raises(ValueError, match="name fields"):
        ss.StreamDataset(disk, lanes=2, window=8, fields=["label"], normalize=True)


def test_a_store_without_statistics_says_what_to_do(tmp_path):
    store = write(tmp_path / "store.arrow", (5, 9), statistics=False)
    with pytest.raises(ss.StoreError, match=r"normalize=ss\.statistics\(store\), or let `streamseq info STORE --comp"):
        ss.StreamDataset(store, lanes=1, window=4, normalize=True)
    ss.describe(tmp_path / "store.arrow")
    assert ss.StreamDataset(store.at_version(), lanes=1, window=4, normalize=True).normalization


def test_states_of_streams_are_saved_without_pickle(disk):
    stream = ss.StreamDataset(disk, lanes=2, window=8, normalize=True)
    kept = {name: [torch.from_numpy(each) for each in scale] for name, scale in stream.normalization.items()}
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = ss.StreamDataset(disk, lanes=2, window=8, normalize=loaded)
    assert again.plan.fingerprint == stream.plan.fingerprint


class Predictor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTM(3, 5, batch_first=True)
        self.out = torch.nn.Linear(5, 3)

    def forward(self, x, state):
        hidden, state = self.cell(x, state)
        return self.out(hidden), state


def test_training_is_that_on_data_that_was_normalised_before():
    arrays = {id: {"x": np.nan_to_num(values(seed, n)["x"])} for id, seed, n in (("a", 1, 50), ("b", 2, 37))}
    store = ss.from_arrays(arrays)
    known = ss.statistics(store)
    scale = np.where(known["x"].std == 0, 1, known["x"].std)
    made = {id: ((each["x"].astype(np.float64) - known["x"].mean) / scale) for id, each in arrays.items()}
    before = ss.from_arrays({id: {"x": each.astype(np.float32)} for id, each in made.items()})

    def losses(store, **options):
        torch.manual_seed(0)
        model = Predictor()
        stream = ss.StreamDataset(store, lanes=2, window=8, lookahead={"y": ("x", 1)}, tail="pack", **options)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        found = []
        # Windows before the current one are read again.
        engine = ss.TBPTT(model, lambda out, window: (out - window["y"]).square().sum(-1), k1=8, k2=20, inputs="x")
        for update in engine.updates(stream):
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(update.loss))
        return found

    assert losses(store, normalize=known) == losses(before)
