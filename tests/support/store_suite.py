"""What holds for every store: the suite that each kind of store is an instance of."""

import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

import streamseq as ss

FIELDS = {
    "x": ss.Field("float32", (3,)),
    "image": ss.Field("uint8", (2, 2)),
    "label": ss.Field("int64", codec="none"),
    "half": ss.Field("float16"),
    "mark": ss.Field("bool"),
    "marks": ss.Field("bool", (3,), codec="none"),
    "wide": ss.Field("float64", codec="lz4"),
}
LENGTHS = {"plant-3": 50, "a long name, with spaces & ümläute": 7, "nothing": 0, "plant-4": 211}


class StoreSuite:
    """Subclasses say how a store of some sequences comes to be; test_broken_stores.py says what each test is for."""

    def build(self, folder, arrays, attrs):
        raise NotImplementedError

    @pytest.fixture
    def arrays(self, make):
        first, arrays = 0, {}
        for id, length in LENGTHS.items():
            arrays[id] = make(FIELDS, first, length)
            first += length
        return arrays

    @pytest.fixture
    def store(self, tmp_path, arrays):
        return self.build(tmp_path, arrays, {"plant-3": {"site": "north", "sensors": [1, 2]}})

    def test_ids_and_lengths_are_in_commit_order(self, store):
        assert isinstance(store.ids, pa.Array)
        assert store.ids.to_pylist() == list(LENGTHS)
        assert store.lengths.tolist() == list(LENGTHS.values())
        assert store.lengths.dtype == np.int64
        assert not store.lengths.flags.writeable
        assert len(store) == len(LENGTHS)
        assert store.num_timesteps == sum(LENGTHS.values())
        assert type(store.num_timesteps) is int
        assert [store.id_of(index) for index in range(4)] == list(LENGTHS)
        assert [store.length(index) for index in range(4)] == list(LENGTHS.values())

    def test_every_sequence_reads_back_by_id_and_by_index(self, store, arrays, same):
        for index, (id, wanted) in enumerate(arrays.items()):
            same(store.read(id), wanted)
            same(store.read(np.int64(index)), wanted)

    def test_spans_and_fields_are_chosen(self, store, arrays, same):
        same(store.read("plant-4", 3, 3), {name: values[3:3] for name, values in arrays["plant-4"].items()})
        for start, stop in [(0, 1), (3, 170), (210, 211), (211, 211)]:
            same(store.read("plant-4", start, stop, fields=["wide"]), {"wide": arrays["plant-4"]["wide"][start:stop]})
        same(store.read("plant-4", start=200), {name: values[200:] for name, values in arrays["plant-4"].items()})

    def test_what_is_read_is_the_callers_own(self, store, arrays, same):
        first = store.read("plant-3")
        for values in first.values():
            values[:] = 1
        same(store.read("plant-3"), arrays["plant-3"])

    def test_attributes(self, store):
        assert store.attrs("plant-3") == {"site": "north", "sensors": [1, 2]}
        assert store.attrs(1) == {}
        store.attrs("plant-3")["site"] = "south"
        assert store.attrs("plant-3")["site"] == "north"

    def test_index(self, store):
        assert [store.index(id) for id in LENGTHS] == [0, 1, 2, 3]
        assert store.indices(["nothing", "plant-3", "plant-4"]).tolist() == [2, 0, 3]
        assert store.find("plant-5") is None

    def test_unknown_sequences(self, store):
        with pytest.raises(KeyError, match="no sequence 'plant-5'"):
            store.read("plant-5")
        with pytest.raises(KeyError, match="no sequence 'plant-5'"):
            store.indices(["plant-3", "plant-5"])
        with pytest.raises(IndexError, match="from 0 to 3, got 4"):
            store.read(4)
        with pytest.raises(IndexError, match="got -1"):
            store.attrs(-1)
        with pytest.raises(TypeError, match="id or its index, got float"):
            store.read(1.0)

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 51), (5, 4), (51, None)])
    def test_spans_outside_the_sequence_are_refused(self, store, start, stop):
        with pytest.raises(ValueError, match="0 <= start <= stop <= length"):
            store.read("plant-3", start, stop)
        reader = store.reader(["x"], 1)
        with pytest.raises(ValueError, match="0 <= start <= stop <= length"):
            list(reader.slices("x", 0, start, 0 if stop is None else stop))
        reader.close()

    def test_unknown_fields(self, store):
        with pytest.raises(ValueError, match="no field 'y'"):
            store.read(0, fields=["y"])
        with pytest.raises(TypeError, match="list of names"):
            store.read(0, fields="x")
        with pytest.raises(ValueError, match="no field 'y'"):
            store.reader(["y"], 1)
        with pytest.raises(ValueError, match="at least one chunk"):
            store.reader(["x"], 0)

    def test_slices_together_are_the_span(self, store, arrays):
        with store.reader(list(FIELDS), 2) as reader:
            for name in FIELDS:
                for start, stop in [(0, 211), (3, 170), (0, 1), (30, 31), (7, 7)]:
                    slices = list(reader.slices(name, 3, start, stop))
                    wanted = arrays["plant-4"][name][start:stop]
                    assert np.array_equal(np.concatenate([wanted[:0], *slices]), wanted)
                    assert all(len(part) and part.dtype == wanted.dtype for part in slices)

    def test_slices_are_read_only_and_stay_valid(self, store, arrays):
        with store.reader(["x"], 1) as reader:
            held = list(reader.slices("x", 3, 0, 211))
            list(reader.slices("x", 0, 0, 50))
        assert np.array_equal(np.concatenate(held), arrays["plant-4"]["x"])
        with pytest.raises(ValueError, match="read-only"):
            held[0][:] = 0

    def test_many_spans_are_located_at_once(self, store, arrays):
        # In no order of the store, some of them twice: what a window of several lanes asks for.
        spans = [(3, 170, 211), (0, 0, 50), (3, 0, 1), (1, 2, 7), (3, 29, 95), (0, 0, 50), (3, 169, 170)]
        with store.reader(list(FIELDS), 2) as reader:
            assert reader.lengths.tolist() == list(LENGTHS.values())
            assert list(reader.fields) == list(FIELDS)
            for name in FIELDS:
                parts = reader.locate(name, tuple(np.array(spans, np.int64).T))
                got = list(reader.arrays(parts))
                assert parts.count.tolist() == [len(part) for part in got]
                assert (np.diff(parts.span) >= 0).all()
                for number, (sequence, start, stop) in enumerate(spans):
                    wanted = list(arrays.values())[sequence][name][start:stop]
                    (mine,) = np.nonzero(parts.span == number)
                    assert np.array_equal(np.concatenate([got[part] for part in mine]), wanted)
                    assert parts.offset[mine].tolist() == [0, *np.cumsum(parts.count[mine])[:-1]]

    def test_reading_ahead_changes_nothing(self, store, arrays):
        names = list(FIELDS)
        with store.reader(names, 1, ahead=2) as reader:
            for start in range(0, 200, 11):
                for name in names:
                    parts = reader.locate(name, (np.array([3]), np.array([start + 5]), np.array([start + 11])))
                    reader.prefetch(name, parts.chunk.tolist())
                for name in names:
                    got = np.concatenate(list(reader.slices(name, 3, start, start + 11)))
                    assert np.array_equal(got, arrays["plant-4"][name][start : start + 11])

    def test_several_threads_read_at_once(self, store, arrays):
        def read(number):
            for start in range(number, 190, 7):
                assert np.array_equal(store.read("plant-4", start, start + 20)["x"], wanted[start : start + 20])
                got = np.concatenate(list(reader.slices("x", 3, start, start + 20)))
                assert np.array_equal(got, wanted[start : start + 20])

        wanted = arrays["plant-4"]["x"]
        with store.reader(["x"], 2) as reader, ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))

    def test_reader_refuses_what_it_does_not_read(self, store):
        reader = store.reader(["x"], 1)
        with pytest.raises(ValueError, match="reads x, got 'label'"):
            reader.slices("label", 0, 0, 1)
        with pytest.raises(IndexError, match="got -1"):
            reader.slices("x", -1, 0, 1)
        with pytest.raises(IndexError, match="got 4"):
            reader.slices("x", 4, 0, 1)
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.slices("x", 0, 0, 1)

    def test_fields_are_those_given(self, store):
        assert store.fields == FIELDS
        assert list(store.fields) == list(FIELDS)
        assert store.chunk_timesteps.keys() == FIELDS.keys()
        assert all(type(steps) is int and steps >= 1 for steps in store.chunk_timesteps.values())
        assert store.decoded_chunk_bytes.keys() == FIELDS.keys()
        assert all(type(size) is int and size >= 0 for size in store.decoded_chunk_bytes.values())

    def test_store_survives_pickling(self, store, arrays, same):
        store.read(0)
        copy = pickle.loads(pickle.dumps(store))
        assert copy.fingerprint == store.fingerprint
        same(copy.read("plant-4"), arrays["plant-4"])

    def test_a_forked_process_reads(self, store, arrays):
        store.read("plant-4")
        if store.backend != "memory":
            # As if another thread were in the middle of a read: its lock stays locked in the child for ever.
            store._shared_reader()[0].acquire()
        child = os.fork()
        if child == 0:
            right = False
            try:
                signal.alarm(20)
                right = np.array_equal(store.read("plant-4")["x"], arrays["plant-4"]["x"])
            finally:
                os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_fingerprint_is_of_the_contents(self, store, tmp_path, arrays, make):
        def fingerprint(name, arrays, attrs=None):
            (tmp_path / name).mkdir()
            attrs = {"plant-3": {"site": "north", "sensors": [1, 2]}} if attrs is None else attrs
            return self.build(tmp_path / name, arrays, attrs).fingerprint

        assert int(store.fingerprint, 16) >= 0
        assert fingerprint("again", arrays) == store.fingerprint
        assert fingerprint("attrs", arrays, {}) != store.fingerprint
        assert fingerprint("order", dict(reversed(arrays.items()))) != store.fingerprint
        assert fingerprint("id", {id.upper(): named for id, named in arrays.items()}, {}) != store.fingerprint
        for name in FIELDS:
            other = {id: {key: values.copy() for key, values in named.items()} for id, named in arrays.items()}
            flat = other["plant-4"][name].reshape(-1)
            flat[-1] = not flat[-1]
            assert fingerprint(f"value-{name}", other) != store.fingerprint

    def test_repr_says_what_there_is(self, store):
        assert "4 sequences, 268 timesteps of x float32[3], image uint8[2, 2]" in repr(store)

    def test_version(self, store):
        assert store.version == 1
        assert store.versions == [1]
        assert store.at_version() is store
        with pytest.raises(ss.StoreError, match="got 7"):
            store.at_version(7)

    def test_verify_finds_nothing(self, store):
        report = store.verify(workers=1)
        assert report.ok
        assert (report.sequences, report.timesteps) == (4, sum(LENGTHS.values()))
