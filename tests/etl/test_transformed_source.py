"""A sequence comes out of transforms as if it had gone through in one piece, wherever pieces and partitions end."""

import itertools
import pickle
from functools import reduce
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines.text import TextSource
from support.transforms import HALO, IN_ORDER, LAST, STEPWISE, TIMED, CutSource, Part, values

import streamseq as ss
from streamseq.etl import Partition, Piece, Skipped, SourceError
from streamseq.etl.transformed_source import TransformedSource
from streamseq.etl.transforms import (
    Cast,
    Clip,
    Derivative,
    FillGaps,
    Filter,
    Function,
    Halo,
    OneHot,
    Rename,
    Resample,
    Scan,
    Stepwise,
    TransformError,
)


def cut_source(lengths, borders, partitions, bad):
    """Sequences cut into parts at borders, and those into partitions."""
    sequences = {f"s{number}": values(number + 1, length) for number, length in enumerate(lengths)}
    parts = []
    for number, length in enumerate(lengths):
        ends = sorted({0, length, *(border % (length + 1) for border in borders)})
        parts += [Part(id=f"s{number}", start=a, stop=b) for a, b in itertools.pairwise(ends)]
        if not length:
            parts.append(Part(id=f"s{number}", start=0, stop=0))
    parts = [Part(id=part.id, start=part.start, stop=part.stop, bad=number in bad) for number, part in enumerate(parts)]
    at = sorted(place % (len(parts) + 1) for place in partitions)
    return CutSource(sequences, [parts[a:b] for a, b in zip([0, *at], [*at, len(parts)], strict=True)])


cuts = st.builds(
    cut_source,
    lengths=st.lists(st.integers(0, 24), min_size=1, max_size=4),
    borders=st.lists(st.integers(0, 23), max_size=8),
    partitions=st.lists(st.integers(0, 40), max_size=7),
    bad=st.sets(st.integers(0, 20), max_size=3) | st.just(set()),
)
chains = st.one_of(
    st.lists(st.sampled_from([*STEPWISE, *HALO]), max_size=3),
    st.lists(st.sampled_from([*STEPWISE, *HALO, *IN_ORDER]), min_size=1, max_size=3),
    st.tuples(st.sampled_from(TIMED)).map(list),
    st.tuples(st.sampled_from([*STEPWISE, *HALO, *IN_ORDER]), st.sampled_from(LAST)).map(list),
)


def read_all(source, partitions):
    """What comes out of all tasks: arrays by id, attributes, what was skipped."""
    pieces, attrs, skipped, ids = {}, {}, [], []
    for partition in pickle.loads(pickle.dumps(partitions)):
        ids.append([])
        for item in source.read(partition):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            assert item.id not in pieces or item.id == list(pieces)[-1], "pieces of one id follow each other"
            pieces.setdefault(item.id, []).append(item.arrays)
            attrs.setdefault(item.id, item.attrs)
            ids[-1].append(item.id)
    source.check_ids(partitions, ids)
    arrays = {
        id: {name: np.concatenate([one[name] for one in several]) for name in source.fields}
        for id, several in pieces.items()
    }
    return arrays, attrs, skipped


@settings(max_examples=400, deadline=None)
@given(cut=cuts, chain=chains)
def test_the_result_is_that_of_whole_sequences_for_any_cut(cut, chain):
    source = TransformedSource(cut, [transform for transform, _ in chain])
    partitions = source.partitions(1 << 20)
    assert sum(partition.num_bytes for partition in partitions) == sum(p.num_bytes for p in cut.partitions(1))
    got, attrs, skipped = read_all(source, partitions)
    assert skipped == [
        item for partition in cut.partitions(1) for item in cut.read(partition) if isinstance(item, Skipped)
    ]
    there = {part.id: part for parts in reversed(cut.cut) for part in reversed(parts) if not part.bad}
    assert list(got) == sorted(there)
    for id, arrays in got.items():
        whole = cut.good(id)
        assert attrs[id] == ({"id": id} if not there[id].start else None)
        assert {name: (v.dtype, v.shape[1:]) for name, v in arrays.items()} == {
            name: (field.dtype, field.shape) for name, field in source.fields.items()
        }
        if not len(whole["x"]):
            assert all(not len(values) for values in arrays.values())
            continue
        wanted = reduce(lambda arrays, step: step[1](arrays), chain, whole)
        assert list(arrays) == list(source.fields)
        for name, expected in wanted.items():
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(arrays[name], expected, rtol=1e-9, atol=1e-7)
            else:
                np.testing.assert_array_equal(arrays[name], expected)
        # To the bit as in one piece.
        one = CutSource({id: whole}, [[Part(id=id, start=0, stop=len(whole["x"]))]])
        alone = TransformedSource(one, source.transforms)
        [same] = read_all(alone, alone.partitions(1))[0].values()
        assert all(arrays[name].tobytes() == same[name].tobytes() for name in wanted)


def parts(*partitions):
    """Partitions of one sequence "a", cut at these timesteps."""
    return [[Part(id="a", start=a, stop=b) for a, b in itertools.pairwise(ends)] for ends in partitions]


def keep(arrays):
    return arrays


def test_a_job_writes_the_same_for_any_workers(tmp_path):
    sequences = {id: values(number, 900) for number, id in enumerate("abc")}
    cut = [
        [Part(id="a", start=0, stop=500)],
        [Part(id="a", start=500, stop=640), Part(id="a", start=640, stop=700)],
        [Part(id="a", start=700, stop=900), Part(id="b", start=0, stop=100)],
        [Part(id="b", start=100, stop=900), Part(id="c", start=0, stop=1)],
        [Part(id="c", start=1, stop=900)],
    ]
    for chain in ([HALO[3], HALO[0], STEPWISE[0]], [TIMED[2]], [IN_ORDER[2], HALO[0]]):
        wanted = {id: reduce(lambda arrays, step: step[1](arrays), chain, whole) for id, whole in sequences.items()}
        fingerprints = set()
        for workers in (1, 3):
            source = TransformedSource(CutSource(sequences, cut), [transform for transform, _ in chain])
            source = cloudpickle.loads(cloudpickle.dumps(source))
            uri = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
            report = ss.ingest(source, uri, workers=workers, chunk_bytes=1600, shard_bytes=8000)
            store = ss.open(uri)
            fingerprints.add(store.fingerprint)
            assert report.sequences == 3
            assert store.ids.to_pylist() == ["a", "b", "c"]
            for id, arrays in wanted.items():
                assert store.attrs(id) == {"id": id}
                got = store.read(id)
                for name, expected in arrays.items():
                    np.testing.assert_allclose(got[name], expected, rtol=1e-9)
        assert len(fingerprints) == 1


def test_files_cut_into_partitions_are_filtered_as_whole_ones(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 10 << 20, np.uint8)
    (tmp_path / "a.bin").write_bytes(content.tobytes())
    (tmp_path / "b.bin").write_bytes(b"\x05\x09")
    source = TransformedSource(TextSource([tmp_path]), [Filter("x", [1.0, 2.0, 4.0]), Cast("x", "int32")])
    partitions = source.partitions(16 << 20)
    assert sum(partition.continues == "a.bin" for partition in partitions) > 1
    got, _, _ = read_all(source, partitions)
    whole = np.pad(content.astype(np.int32), 1, mode="edge")
    np.testing.assert_array_equal(got["a.bin"]["x"], whole[2:] + 2 * whole[1:-1] + 4 * whole[:-2])
    assert got["b.bin"]["x"].tolist() == [9 + 2 * 5 + 4 * 5, 9 + 2 * 9 + 4 * 5]


class Counted(CutSource):
    """Counts the pieces that are read, and the reads that were let go of."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.pieces, self.open = [], 0

    def read(self, partition):
        self.open += 1
        try:
            for item in super().read(partition):
                self.pieces.append(partition.content)
                yield item
        finally:
            self.open -= 1


def test_a_task_reads_ahead_no_further_than_it_needs():
    cut = parts([0, 10], [10, 13, 14, 20], [20, 24])
    source = Counted({"a": values(1, 24)}, cut)
    transformed = TransformedSource(source, [HALO[3][0]])  # 2 before, 3 after
    for partition, pieces in zip(transformed.partitions(1), ([0, 1, 1, 1], [1, 1, 1, 2], [2]), strict=True):
        list(transformed.read(partition))
        assert source.pieces == pieces
        assert source.open == 0
        source.pieces.clear()


class Sized(CutSource):
    """Partitions that say they are large."""

    def partitions(self, target_bytes):
        return [
            Partition(num_bytes=1 << 20, content=found.content, continues=found.continues)
            for found in super().partitions(target_bytes)
        ]


def test_a_task_names_only_the_next_partition_where_that_is_large():
    source = Sized({"a": values(1, 60)}, parts([0, 20], [20, 40], [40, 60]))
    for chain, named in (([HALO[0][0]], [[1], [2], []]), ([STEPWISE[0][0]], [[], [], []])):
        partitions = TransformedSource(source, chain).partitions(1 << 20)
        assert [[one.content for one in partition.content.following] for partition in partitions] == named
        assert [partition.content.own[0].content for partition in partitions] == [0, 1, 2]


def test_too_few_timesteps_in_the_next_partitions_are_an_error():
    source = Sized({"a": values(1, 60)}, parts([0, 20], [20, 22], [22, 60]))
    transformed = TransformedSource(source, [HALO[0][0]])
    partitions = transformed.partitions(1 << 20)
    with pytest.raises(SourceError, match=r"'a' need 3 timesteps .* the next 1 have 2: make partitions larger"):
        list(transformed.read(partitions[0]))


def test_transforms_with_state_go_through_different_sequences_in_parallel():
    sequences = {id: values(number, 30) for number, id in enumerate("abc")}
    cut = [
        [Part(id="a", start=0, stop=10)],
        [Part(id="a", start=10, stop=20)],
        [Part(id="a", start=20, stop=30), Part(id="b", start=0, stop=9)],
        [Part(id="b", start=9, stop=30), Part(id="c", start=0, stop=1)],
        [Part(id="c", start=1, stop=30)],
    ]
    source = TransformedSource(CutSource(sequences, cut), [IN_ORDER[5][0]])
    partitions = source.partitions(1)
    assert [[one.content for one in partition.content.own] for partition in partitions] == [[0, 1], [2], [3], [4]]
    made = [list(dict.fromkeys(item.id for item in source.read(partition))) for partition in partitions]
    assert made == [["a"], ["b"], ["c"], []]


@pytest.mark.parametrize(("chain", "fails"), [(HALO[:1], True), (IN_ORDER[:1], True), (STEPWISE, False)])
def test_a_source_that_does_not_say_what_goes_on_is_found_out(chain, fails):
    source = CutSource({"a": values(1, 20)}, parts([0, 10], [10, 20]), declared=False)
    transformed = TransformedSource(source, [transform for transform, _ in chain])
    if not fails:
        read_all(transformed, transformed.partitions(1))
        return
    with pytest.raises(SourceError, match=r"'a' went on in one that does not: set Partition.continues"):
        read_all(transformed, transformed.partitions(1))


class Numbers:
    """One sequence "n", of these numbers in these pieces."""

    fields = {"x": ss.Field("int64")}  # noqa: RUF012 - as a user would write it
    threads = True

    def __init__(self, *pieces):
        self.pieces = pieces

    def partitions(self, target_bytes):
        return [
            Partition(num_bytes=1 << 20, content=number, continues="n" if number else None)
            for number in range(len(self.pieces))
        ]

    def read(self, partition):
        yield Piece(id="n", arrays={"x": np.array(self.pieces[partition.content])})


def refuse_large(arrays):
    if (arrays["x"] > 100).any():
        raise RuntimeError("too large\nfor this")
    return arrays


class Shrinking(Stepwise):
    def output_fields(self, fields):
        return dict(fields)

    def apply(self, arrays):
        return {name: values[1:] for name, values in arrays.items()}


class Lazy(Halo):
    """Has a halo, and holds back more than that."""

    @property
    def before(self):
        return 1

    def output_fields(self, fields):
        return dict(fields)

    def apply(self, arrays, lead, trail):
        return {name: values[lead : len(values) - trail] for name, values in arrays.items()}

    def begin(self, id, *, continued=False):
        operator, held = super().begin(id, continued=continued), []

        class Late:
            def push(self, arrays):
                held.extend(operator.push(arrays))
                return []

            def end(self):
                return [*held, *operator.end()]

        return Late()


@pytest.mark.parametrize(
    ("pieces", "transform", "message"),
    [
        (
            [[1, 2], [3, 9]],
            OneHot("x", 4),
            r"OneHot\('x'\), timestep 1 of the part of sequence 'n' in its partition: 9 ",
        ),
        (
            [[1, 2, 9]],
            OneHot("x", 4),
            r"OneHot\('x'\), timestep 2 of sequence 'n': 9 is none of the 4 classes from 0 on$",
        ),
        ([[1, 300]], Cast("x", "uint8"), r"Cast\('x'\), timestep 1 of sequence 'n': uint8 cannot hold 300$"),
        (
            [[1, 300]],
            refuse_large,
            r"Function\(refuse_large\), timesteps 0 to 1 of sequence 'n': RuntimeError: too large$",
        ),
        ([[10, 20], [40, 30]], FillGaps("x", 10), r"FillGaps\('x'\), timestep 3 of sequence 'n': .* 30 follows 40$"),
        ([[0, 1], [5 * 10**9]], FillGaps("x", 1), r"timestep 2 of sequence 'n': 4999999998 timesteps are missing"),
        ([[1, 2, 2]], Derivative("x", time="x"), r"timestep 2 of sequence 'n': times ascend, 2 follows 2$"),
        (
            [[1, 2]],
            Shrinking(),
            r"Shrinking, timesteps 0 to 1 of sequence 'n': ValueError: it makes a timestep of each",
        ),
        (
            [[1, 2]],
            lambda arrays: {"x": arrays["x"] * 1.0} if arrays["x"].any() else arrays,
            "TypeError: field 'x' holds",
        ),
        ([[1, 2]], lambda arrays: {"y": arrays["x"]} if arrays["x"].any() else arrays, "it makes the fields x, this"),
        (
            [[1, 2], [3, 4]],
            Lazy(),
            "Lazy: .* as soon as `after` more are there; of sequence 'n' 3 timesteps are missing",
        ),
        (
            [[1, 2]],
            Scan(lambda state, arrays: (state, arrays), end=lambda state: 1 / 0),
            "end of sequence 'n' after 2 ",
        ),
    ],
)
def test_what_a_transform_refuses_is_said_with_its_place(pieces, transform, message):
    source = TransformedSource(Numbers(*pieces), [transform])
    with pytest.raises(TransformError, match=message) as caught:
        read_all(source, source.partitions(1 << 20))
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


class InOnePartition(Numbers):
    """The pieces are all of one partition."""

    def partitions(self, target_bytes):
        return [Partition(num_bytes=1, content=None)]

    def read(self, partition):
        for piece in self.pieces:
            yield Piece(id="n", arrays={"x": np.array(piece)})


@pytest.mark.parametrize("transform", [OneHot("x", 4), Derivative("x", time="x"), Cast("x", "int8")])
def test_places_are_counted_over_all_pieces(transform):
    source = TransformedSource(InOnePartition([0, 1], [2, 1000], [9]), [Rename("x", "y"), Rename("y", "x"), transform])
    place = 4 if isinstance(transform, Derivative) else 3
    with pytest.raises(TransformError, match=f"timestep {place} of sequence"):
        list(source.read(source.partitions(1)[0]))


def test_what_does_not_fit_the_fields_of_the_source_is_an_error():
    source = TransformedSource(Numbers([0.5]), [keep])
    with pytest.raises(SourceError, match=r"sequence 'n' does not fit: .*int64, got float64"):
        list(source.read(source.partitions(1)[0]))


@pytest.mark.parametrize(
    ("transforms", "error", "message"),
    [
        (keep, TypeError, "transforms is a list"),
        ("clip:x,0,1", TypeError, "transforms is a list"),
        ([3], TypeError, "a transform is one of"),
        ([Clip], TypeError, "a class is called first"),
        ([Clip("z", 0)], ValueError, r"Clip\('z'\) needs the field 'z', there is 'time', 'x', 'label': name one"),
        ([Rename("x", "label")], ValueError, "which is another field"),
        ([lambda arrays: 3], ValueError, r"fails on timesteps of zeros with TypeError: a function returns a dict"),
        ([lambda arrays: {"y": arrays["x"][1:]}], ValueError, "as many timesteps as it gets"),
        ([lambda arrays: {"y y": arrays["x"]}], ValueError, "a field's name"),
        ([Rename("x", "y"), Clip("x", 0)], ValueError, "needs the field 'x', there is 'time', 'y'"),
    ],
)
def test_transforms_that_do_not_fit_are_refused_at_once(transforms, error, message):
    with pytest.raises(error, match=message):
        TransformedSource(CutSource({"a": values(1, 9)}, parts([0, 9])), transforms)


def test_partitions_are_as_large_as_what_comes_out():
    class Asked(Numbers):
        def partitions(self, target_bytes):
            self.asked = target_bytes
            return super().partitions(target_bytes)

    for transforms, share in (
        ([OneHot("x", 16)], 1 / 2),
        ([Resample(1, 4, "nearest")], 1 / 4),
        ([Cast("x", "int8")], 8),
    ):
        source = Asked([1])
        TransformedSource(source, transforms).partitions(1 << 20)
        assert source.asked == (1 << 20) * share


def test_large_results_come_in_small_pieces():
    source = TransformedSource(Numbers(np.arange(100_000) % 256), [OneHot("x", 256, "float32")])
    pieces = list(source.read(source.partitions(1 << 20)[0]))
    assert sum(len(piece.arrays["x"]) for piece in pieces) == 100_000
    assert max(piece.arrays["x"].nbytes for piece in pieces) <= 4 << 20
    gap = TransformedSource(Numbers([0, 1_000_000]), [FillGaps("x", 1)])
    pieces = list(gap.read(gap.partitions(1 << 20)[0]))
    assert sum(len(piece.arrays["x"]) for piece in pieces) == 1_000_001
    assert max(piece.arrays["x"].nbytes for piece in pieces) <= 4 << 20


def test_functions_of_the_user_are_for_processes_unless_they_say_otherwise():
    source = CutSource({"a": values(1, 9)}, parts([0, 9]))
    assert TransformedSource(source, [Filter("x", [1.0])]).threads
    assert not TransformedSource(source, [keep]).threads
    assert TransformedSource(source, [Function(keep, threads=True)]).threads
    source = SimpleNamespace(fields=CutSource.fields)
    assert TransformedSource(source, [Function(keep, threads=True)]).threads


def test_a_transformed_source_can_be_transformed_again():
    source = CutSource({"a": values(1, 40)}, parts([0, 10], [10, 20, 25], [25, 40]))
    first, second = HALO[0], HALO[3]
    once = TransformedSource(source, [first[0], second[0]])
    twice = TransformedSource(TransformedSource(source, [first[0]]), [second[0]])
    wanted = read_all(once, once.partitions(1))[0]["a"]
    got = read_all(twice, twice.partitions(1))[0]["a"]
    assert all(got[name].tobytes() == wanted[name].tobytes() for name in wanted)


class Wrong(CutSource):
    """Partitions say what is not so."""

    def partitions(self, target_bytes):
        says = [None, "a", "b", "b"]
        return [Partition(num_bytes=1, content=number, continues=id) for number, id in enumerate(says)]


def test_timesteps_that_a_source_says_are_of_another_sequence_are_not_lost_silently():
    sequences = {"a": values(1, 9), "b": values(2, 9)}
    a = parts([0, 3], [3, 6], [6, 9])
    source = TransformedSource(Wrong(sequences, [*a, [Part(id="b", start=0, stop=9)]]), [IN_ORDER[5][0]])
    with pytest.raises(SourceError, match="'a' went on in one that does not"):
        read_all(source, source.partitions(1))
