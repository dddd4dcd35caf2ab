"""A store does what a dict of lists would, whatever is done to it and in which order."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.jobs import entries, named

import streamseq as ss
from streamseq.storage.upkeep.verify import verify

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none"), "b": ss.Field("bool")}
IDS = ["a", "b", "c", "ü"]
# What a writer is told: an id, how many timesteps, and whether by `write`, which is for new ones, or by `append`.
PIECES = st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 25), st.booleans()), min_size=1, max_size=4)

Contents = dict[str, list[int]]
"""By id the numbers of the timesteps, each of them given out once."""


class Pending:
    """A writer, what it began with and what it has written."""

    def __init__(self, writer, base: Contents | None) -> None:
        self.writer = writer
        self.base = base
        self.written: Contents = {}
        self.attrs: dict[str, dict[str, int]] = {}


class StoreModel(RuleBasedStateMachine):
    """Some writers at a time, any number of readers, and what they must see."""

    backend = ""
    writers = Bundle("writers")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.address = self.folder / f"store.{self.backend}"
        #: What each version holds, and the attributes that sequences were given.
        self.versions: list[Contents] = []
        self.attrs: dict[str, dict[str, int]] = {}
        self.open: list[Pending] = []
        self.numbers = 0

    @initialize(pieces=st.none() | PIECES)
    def nothing_is_there(self, pieces):
        with pytest.raises(ss.StoreError):
            ss.open(self.address)
        if pieces is not None:
            self.add(pieces)

    @precondition(lambda self: len(self.open) < 3)
    @rule(target=writers, pieces=PIECES)
    def begin(self, pieces):
        if self.versions:
            pending = Pending(ss.append(self.address), self.versions[-1])
        else:
            pending = Pending(ss.create(self.address, FIELDS, chunk_bytes=60, shard_bytes=400), None)
        pending.writer.__enter__()
        self.open.append(pending)
        self.write(pending, pieces)
        return pending

    @rule(pending=writers, pieces=PIECES)
    def write(self, pending, pieces):
        base = pending.base or {}
        for id, steps, whole in pieces:
            known = id in base or id in pending.written
            arrays = self.arrays(steps)
            if whole and known:
                with pytest.raises(ValueError, match="written once"):
                    pending.writer.write(id, **arrays)
                continue
            attrs = None if known else {"n": self.numbers}
            (pending.writer.write if whole else pending.writer.append)(id, attrs=attrs, **arrays)
            pending.written.setdefault(id, []).extend(arrays["y"].tolist())
            if attrs is not None:
                pending.attrs[id] = attrs

    @rule(pieces=PIECES)
    def add(self, pieces):
        self.commit(self.begin(pieces))

    @rule(pending=consumes(writers))
    def commit(self, pending):
        self.open.remove(pending)
        newest = self.versions[-1] if self.versions else {}
        if pending.base is None:
            conflict = bool(self.versions)
        else:
            lengths = [
                [len(held[id]) if id in held else -1 for id in pending.written] for held in (pending.base, newest)
            ]
            conflict = lengths[0] != lengths[1]
        with pytest.raises(ss.VersionConflictError) if conflict else contextlib.nullcontext():
            pending.writer.__exit__(None, None, None)
        if not conflict and (pending.written or pending.base is None):
            added = {id: newest.get(id, []) + numbers for id, numbers in pending.written.items()}
            self.versions.append(newest | added)
            self.attrs |= pending.attrs
            self.check(ss.open(self.address), len(self.versions))

    @rule(pending=consumes(writers))
    def abort(self, pending):
        self.open.remove(pending)
        error = RuntimeError()
        pending.writer.__exit__(RuntimeError, error, None)

    @precondition(lambda self: self.versions)
    @rule(target=snapshots, data=st.data())
    def reopen(self, data):
        version = data.draw(st.integers(1, len(self.versions)) | st.none())
        return ss.open(self.address, version)

    @rule(target=snapshots, store=snapshots)
    def refresh(self, store):
        newest = store.at_version()
        assert newest.version == len(self.versions)
        return newest

    @rule(store=snapshots, data=st.data())
    def read(self, store, data):
        contents = self.versions[store.version - 1]
        assert store.versions == list(range(1, len(self.versions) + 1))
        if not contents:
            return
        id = data.draw(st.sampled_from(sorted(contents)))
        start = data.draw(st.integers(0, len(contents[id])))
        stop = data.draw(st.integers(start, len(contents[id])))
        names = data.draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, unique=True))
        self.same(store.read(id, start, stop, names), contents[id][start:stop], names)

    @rule(store=snapshots, fields=st.lists(st.sampled_from(list(FIELDS)), min_size=1, unique=True))
    def read_all(self, store, fields):
        self.check(store, store.version, fields)

    @precondition(lambda self: self.versions)
    @rule()
    def compact(self):
        before = ss.open(self.address)
        report = ss.compact(self.address)
        if report.version is not None:
            self.versions.append(self.versions[-1])
            assert report.version == len(self.versions)
            assert ss.open(self.address).fingerprint == before.fingerprint
        self.check(ss.open(self.address), len(self.versions))

    @precondition(lambda self: self.versions)
    @rule()
    def clean(self):
        ss.clean(self.address)

    @invariant()
    def only_what_was_committed_is_there(self):
        if self.versions:
            store = ss.open(self.address)
            assert store.version == len(self.versions)
            assert store.num_timesteps == sum(map(len, self.versions[-1].values()))
        else:
            with pytest.raises(ss.StoreError, match="is not a store"):
                ss.open(self.address)

    def teardown(self) -> None:
        try:
            while self.open:
                self.abort(self.open[-1])
            for version in range(1, len(self.versions) + 1):
                self.check(ss.open(self.address, version), version)
            if self.versions:
                assert verify(self.address, all_versions=True, workers=1).problems == ()
                ss.clean(self.address)
                assert entries(self.address) == named(self.address)
        finally:
            shutil.rmtree(self.folder)

    def arrays(self, steps: int):
        numbers = np.arange(self.numbers, self.numbers + steps)
        self.numbers += steps
        return {"x": np.stack([numbers, -numbers], 1).astype(np.float32), "y": numbers, "b": numbers % 3 == 0}

    def same(self, got, numbers, names) -> None:
        numbers = np.array(numbers, np.int64)
        wanted = {"x": np.stack([numbers, -numbers], 1).astype(np.float32), "y": numbers, "b": numbers % 3 == 0}
        assert list(got) == names
        for name in names:
            assert got[name].dtype == FIELDS[name].dtype
            assert np.array_equal(got[name], wanted[name])

    def check(self, store, version: int, names: list[str] | None = None) -> None:
        """Assert that a store has the contents of a version."""
        contents = self.versions[version - 1]
        names = list(FIELDS) if names is None else names
        assert store.version == version
        assert store.ids.to_pylist() == list(contents)
        assert store.lengths.tolist() == [len(numbers) for numbers in contents.values()]
        for id, numbers in contents.items():
            assert store.attrs(id) == self.attrs[id]
            self.same(store.read(id, fields=names), numbers, names)
        with store.reader(names, 1) as reader:
            for sequence, numbers in enumerate(contents.values()):
                for name in names:
                    parts = list(reader.slices(name, sequence, 0, len(numbers)))
                    empty = np.empty((0, *FIELDS[name].shape), FIELDS[name].dtype)
                    self.same({name: np.concatenate([empty, *parts])}, numbers, [name])


class ZarrModel(StoreModel):
    backend = "zarr"


class ArrowModel(StoreModel):
    backend = "arrow"


MODELS = pytest.mark.parametrize("model", [ZarrModel, ArrowModel])


@MODELS
def test_a_store_is_a_dict_of_lists(model):
    run_state_machine_as_test(model, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))


@MODELS
@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_store_stays_a_dict_of_lists(model):
    run_state_machine_as_test(model, settings=settings(max_examples=60, stateful_step_count=50, deadline=None))
