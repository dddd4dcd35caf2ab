"""FASTA and FASTQ: the same records for any partitions, and every broken one told with its place."""

import gzip
import pickle
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines import file_bytes, genome_fastq, genome_read
from streamseq_pipelines.genome import GenomeSource, command
from streamseq_pipelines.genome_fasta import read_fasta
from streamseq_pipelines.genome_letters import Letters

import streamseq as ss
from streamseq.etl import Skipped, SourceError

BASES = st.text("ACGTNacgtn", max_size=60)
RECORDS = st.lists(BASES, min_size=1, max_size=12)


def fasta(records, width=7, end="\n", last=True):
    lines = []
    for number, letters in enumerate(records):
        lines.append(f">r{number} record {number}")
        lines += [letters[start : start + width] for start in range(0, len(letters), width)]
    return (end.join(lines) + (end if last else "")).encode()


def fastq(records, end="\n", last=True):
    lines = []
    for number, letters in enumerate(records):
        quality = "".join(chr(33 + (7 * number + at) % 94) for at in range(len(letters)))
        lines += [f"@r{number} record {number}", letters, "+", "@" + quality[1:] if letters else ""]
    return (end.join(lines) + (end if last else "")).encode()


def read_all(source, target):
    """Fields by id, attributes by id, and what was left out."""
    arrays, attrs, skipped, last = {}, {}, [], None
    partitions = source.partitions(target)
    source, partitions = pickle.loads(pickle.dumps((source, partitions)))
    for partition in partitions:
        items = list(source.read(partition))
        first = next((item.id for item in items if not isinstance(item, Skipped)), None)
        if first is not None:
            assert partition.continues == (first if first in arrays else None)
        for item in items:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            assert item.id == last or item.id not in arrays, "pieces of one id follow each other"
            last = item.id
            arrays.setdefault(last, []).append(item.arrays)
            if item.attrs is not None:
                assert attrs.setdefault(last, item.attrs) == item.attrs
    joined = {
        id: {name: np.concatenate([part[name] for part in parts]) for name in source.fields}
        for id, parts in arrays.items()
    }
    return joined, attrs, skipped


def letters_of(found):
    return {id: arrays["x"].tobytes().decode() for id, arrays in found.items()}


@settings(max_examples=150, deadline=None)
@given(
    records=RECORDS,
    width=st.integers(1, 80),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    target=st.integers(1, 300),
    piece=st.integers(1, 90),
    on_error=st.sampled_from(["fail", "skip"]),
)
def test_fasta_is_the_same_for_any_partitions_and_pieces(
    tmp_path_factory, records, width, end, last, target, piece, on_error
):
    folder = tmp_path_factory.mktemp("fasta")
    data = fasta(records, width, end, last)
    (folder / "a.fa").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_bytes, "PIECE_BYTES", piece)
        patch.setattr(genome_read, "HELD_BYTES", piece)
        found, attrs, skipped = read_all(GenomeSource([folder], on_error=on_error), target)
    assert letters_of(found) == {f"r{number}": letters for number, letters in enumerate(records) if letters}
    empty = [f"record 'r{number}' is empty" for number, letters in enumerate(records) if not letters]
    # A record that is cut right behind its header has not ended there.
    assert [item.reason for item in skipped] == empty
    for number, letters in enumerate(records):
        if letters:
            byte = data.index(f">r{number} ".encode())
            assert attrs[f"r{number}"] == {"description": f"record {number}", "file": "a.fa", "byte": byte}


@settings(max_examples=150, deadline=None)
@given(
    records=RECORDS,
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    target=st.integers(1, 300),
    piece=st.integers(1, 90),
    on_error=st.sampled_from(["fail", "skip"]),
)
def test_fastq_is_the_same_for_any_partitions_and_pieces(tmp_path_factory, records, end, last, target, piece, on_error):
    folder = tmp_path_factory.mktemp("fastq")
    data = fastq(records, end, last or not records[-1])
    (folder / "a.fq").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_bytes, "PIECE_BYTES", piece)
        found, _, skipped = read_all(GenomeSource([folder], on_error=on_error), target)
    assert letters_of(found) == {f"r{number}": letters for number, letters in enumerate(records) if letters}
    assert len(skipped) == records.count("")
    lines = data.decode().split(end)
    for number, letters in enumerate(records):
        if letters:
            assert (found[f"r{number}"]["quality"] + 33).tobytes().decode() == lines[4 * number + 3]


def test_large_files_are_cut_at_records_and_inside_long_ones(tmp_path):
    rng = np.random.default_rng(1)
    records = ["".join(rng.choice(list("ACGT"), size)) for size in (500, 300, 20_000, 10, 10, 700, 400)]
    (tmp_path / "a.fa").write_bytes(fasta(records, 60))
    source = GenomeSource([tmp_path / "a.fa"])
    partitions = source.partitions(2000)
    assert len(partitions) > 8
    assert {partition.continues for partition in partitions} == {None, "r2"}
    for whole in (GenomeSource([tmp_path / "a.fa"], on_error="skip"), source):
        found, _, _ = read_all(whole, 2000)
        assert letters_of(found) == {f"r{number}": letters for number, letters in enumerate(records)}
    # Where records may have to be left out, they are not cut.
    parts = GenomeSource([tmp_path / "a.fa"], on_error="skip").partitions(2000)
    assert {partition.continues for partition in parts} == {None}
    assert max(partition.num_bytes for partition in parts) > 20_000
    (tmp_path / "a.fq").write_bytes(fastq(["ACGT" * 20] * 100))
    reads = GenomeSource([tmp_path / "a.fq"]).partitions(2000)
    assert len(reads) > 8
    assert all(list(a.content)[-1].stop == next(iter(b.content)).start for a, b in pairwise(reads))


def test_a_part_that_begins_inside_of_a_line_has_no_header_there():
    data = np.frombuffer(b">AC\n>b\nG\n", np.uint8)
    items = read_fasta([data], Letters(), at=50, line=None, inside=True, whole_header=False)
    first, head, second = items
    assert (first.place, first.problem) == ("byte 50", "'>' is no letter of the alphabet")
    assert (head.id, head.offset, second.arrays["x"].tobytes()) == ("b", 54, b"G")


@pytest.mark.parametrize("kind", ["gz", "bgz"])
def test_compressed_files_of_many_members_are_read_whole(tmp_path, kind):
    data = fasta(["ACGT" * 50, "GGG" * 100], 60)
    blocks = b"".join(gzip.compress(data[start : start + 97]) for start in range(0, len(data), 97))
    (tmp_path / f"a.fa.{kind}").write_bytes(blocks)
    found, _, _ = read_all(GenomeSource([tmp_path]), 10)
    assert letters_of(found) == {"r0": "ACGT" * 50, "r1": "GGG" * 100}


@pytest.mark.parametrize("suffix", ["fa", "fq"])
def test_of_a_truncated_gzip_nothing_is_written(tmp_path, suffix):
    made = (fasta if suffix == "fa" else fastq)(["ACGTACGGT" * 50] * 20)
    (tmp_path / f"a.{suffix}.gz").write_bytes(gzip.compress(made)[:-20])
    (tmp_path / f"b.{suffix}").write_bytes(fasta(["A"]).replace(b"r0", b"q") if suffix == "fa" else b"@q\nA\n+\nI\n")
    with pytest.raises(SourceError, match="the gzip data ends early"):
        read_all(GenomeSource([tmp_path]), 10**6)
    found, _, [skipped] = read_all(GenomeSource([tmp_path], on_error="skip"), 10**6)
    assert list(found) == ["q"]
    assert skipped.what.endswith(".gz")
    assert skipped.reason == "the gzip data ends early: it was cut off"


# Letters


def numbers(letters, text):
    found = letters.numbers(np.frombuffer(text, np.uint8))
    return found["x"].tolist(), found["mask"].astype(int).tolist() if "mask" in found else None


@pytest.mark.parametrize(
    ("made", "text", "expected"),
    [
        ({}, b"ACgt-*", (list(b"ACgt-*"), None)),
        ({"lower": "upper"}, b"ACgt", (list(b"ACGT"), None)),
        ({"lower": "mask"}, b"ACgt", (list(b"ACGT"), [0, 0, 1, 1])),
        ({"alphabet": "ACGTN"}, b"ACGTNacgtn", (list(range(10)), None)),
        ({"alphabet": "ACGTN", "lower": "upper"}, b"ACGTNacgtn", ([0, 1, 2, 3, 4] * 2, None)),
        ({"alphabet": "ACGTN", "lower": "mask"}, b"ANan", ([0, 4, 0, 4], [0, 0, 1, 1])),
        ({"alphabet": "ACGT", "lower": "upper", "ambiguous": "mask"}, b"CNnRt", ([1, 0, 0, 0, 3], [0, 1, 1, 1, 0])),
        ({"alphabet": "ACGTN", "ambiguous": "n"}, b"RryN", ([4, 9, 9, 4], None)),
        ({"alphabet": "ACGTN", "ambiguous": "n", "lower": "mask"}, b"RrN", ([4, 4, 4], [0, 1, 0])),
    ],
)
def test_letters_become_what_was_asked_for(made, text, expected):
    assert numbers(Letters(**made), text) == expected


@pytest.mark.parametrize(
    "made",
    [
        {"alphabet": ""},
        {"alphabet": "ACCG"},
        {"alphabet": "acgt"},
        {"alphabet": "A>"},
        {"alphabet": "ACGT", "ambiguous": "n"},
        {"ambiguous": "mask"},
        {"lower": "drop"},
        {"alphabet": "ACGT", "ambiguous": "drop"},
    ],
)
def test_alphabets_that_make_no_sense_are_refused(made):
    with pytest.raises(ValueError):
        Letters(**made)


# What is broken

FASTA_BROKEN = [
    (
        b">a\nAC\n>b x\nAC\nA!C\nAA\n>c\nGG\n",
        "line 5",
        "byte 15",
        "'!' is no letter of the alphabet",
        b">b x\nAC\nA!C\nAA\n",
    ),
    (b">a\nAC\n> \nACG\n>c\nGG\n", "line 3", "byte 6", "the header has no id", b"> \nACG\n"),
    (b">a\nAC\n>\xff\nACG\n>c\nGG\n", "line 3", "byte 6", "the header is not UTF-8", b">\xff\nACG\n"),
    (b">a\nAC\n>b\nA>C\n>c\nGG\n", "line 4", "byte 10", "'>' is no letter of the alphabet", b">b\nA>C\n"),
    (b"\nACG\n>a\nAC\n>c\nGG\n", "line 2", "byte 1", "it does not begin with a record", b"ACG\n"),
    (b">a\nAC\n>b\nA\x00\n>c\nGG\n", "line 4", "byte 10", "0x00 is no letter of the alphabet", b">b\nA\x00\n"),
]
FASTQ_BROKEN = [
    (b"@a\nAC\n+\nII\n@b\nACG\n+\nII\n@c\nGG\n+\nII\n", "line 5", "the record has 3 letters and 2 qualities", 12),
    (b"@a\nAC\n+\nII\n@b\nA!\n+\nII\n@c\nGG\n+\nII\n", "line 6", "'!' is no letter of the alphabet", 11),
    (b"@a\nAC\n+\nII\n@b\nAC\n+\nI\x1f\n@c\nGG\n+\nII\n", "line 8", "0x1f is no quality, which is ! to ~", 11),
    (b"@a\nAC\n+\nII\nb\nAC\n+\nII\n@c\nGG\n+\nII\n", "line 5", "it does not begin with a record", 10),
    (b"@a\nAC\n+\nII\n@b\nAC\nAC\nII\n@c\nGG\n+\nII\n", "line 5", "the third line of the record", 12),
    (b"@a\nAC\n+\nII\n@b\nAC\nII\n@c\nGG\n+\nII\n", "line 5", "the record ends after 3 of its 4 lines", 9),
    (b"@a\nAC\n+\nII\n@c\nGG\n+\nII\n@b\nAC\n+\n", "line 9", "the record ends after 3 of its 4 lines", 8),
    (b"@a\nAC\n+\nII\n@c\nGG\n+\nII\n@b\nAC\n+\nI", "line 9", "the record has 2 letters and 1 qualities", 9),
    (b"@a\nAC\n+\nII\n@ \nAC\n+\nII\n@c\nGG\n+\nII\n", "line 5", "the header has no id", 11),
]


@pytest.mark.parametrize(("data", "line", "byte", "reason", "content"), FASTA_BROKEN, ids=range(len(FASTA_BROKEN)))
@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("held", [1, 1000])
def test_a_broken_fasta_record_is_told_and_the_others_are_read(
    tmp_path, monkeypatch, data, line, byte, reason, content, piece, held
):
    monkeypatch.setattr(file_bytes, "PIECE_BYTES", piece)
    (tmp_path / "x.fa").write_bytes(data)
    for target, place in ((1000, line), (10, byte)):
        monkeypatch.setattr(genome_read, "HELD_BYTES", 1000)
        with pytest.raises(SourceError, match=r"x\.fa'"):
            read_all(GenomeSource([tmp_path]), target)
        monkeypatch.setattr(genome_read, "HELD_BYTES", held)
        for on_error in ("skip", "quarantine"):
            found, _, [skipped] = read_all(GenomeSource([tmp_path], on_error=on_error), target)
            assert letters_of(found) == {"a": "AC", "c": "GG"}
            assert (skipped.place, skipped.num_bytes) == (place, len(content))
            assert skipped.reason.startswith(reason)
            assert skipped.content == (content if on_error == "quarantine" and held == 1000 else None)


@pytest.mark.parametrize(("data", "line", "reason", "num_bytes"), FASTQ_BROKEN, ids=range(len(FASTQ_BROKEN)))
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_a_broken_fastq_record_is_told_and_the_others_are_read(
    tmp_path, monkeypatch, data, line, reason, num_bytes, piece
):
    monkeypatch.setattr(file_bytes, "PIECE_BYTES", piece)
    (tmp_path / "x.fq").write_bytes(data)
    with pytest.raises(SourceError, match=rf"x\.fq', {line}: "):
        read_all(GenomeSource([tmp_path]), 1000)
    for target in (1000, 10):
        found, _, [skipped] = read_all(GenomeSource([tmp_path], on_error="quarantine"), target)
        assert letters_of(found) == {"a": "AC", "c": "GG"}
        assert skipped.reason.startswith(reason)
        assert skipped.place == line if target == 1000 else skipped.place.startswith("byte ")
        assert skipped.num_bytes == num_bytes
        assert skipped.content in data
        assert len(skipped.content) == num_bytes


def test_a_file_that_is_all_broken_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(file_bytes, "PIECE_BYTES", 100)
    monkeypatch.setattr(genome_fastq, "HELD_BYTES", 1000)
    (tmp_path / "x.fq").write_bytes(b"what\n" * 2000 + b"@c\nGG\n+\nII\n")
    found, _, skipped = read_all(GenomeSource([tmp_path], on_error="skip"), 10**6)
    assert list(found) == ["c"]
    assert sum(item.num_bytes for item in skipped) == 10_000
    assert max(item.num_bytes for item in skipped) < 2000


@pytest.mark.parametrize("target", [1000, 1])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_records_with_one_id_are_never_one_sequence(tmp_path, target, on_error):
    (tmp_path / "a.fa").write_bytes(b">k one\nAC\n>k two\nGG\n")
    source = GenomeSource([tmp_path / "a.fa"], on_error=on_error)
    with pytest.raises((SourceError, ValueError), match="'k'"):
        ss.ingest(source, tmp_path / "s.zarr", shard_bytes=target)
    whole = GenomeSource([tmp_path / "a.fa"], whole_header=True)
    report = ss.ingest(whole, tmp_path / "s.zarr", shard_bytes=target)
    assert ss.open(report.store).ids.to_pylist() == ["k one", "k two"]


def test_the_format_is_that_of_the_files_or_what_was_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(b">a\nAC\n")
    with pytest.raises(ValueError, match="say which format"):
        _ = GenomeSource([tmp_path]).fields
    assert letters_of(read_all(GenomeSource([tmp_path], format="fasta"), 10)[0]) == {"a": "AC"}
    (tmp_path / "b.fa").write_bytes(b">b\nAC\n")
    (tmp_path / "c.fq.gz").write_bytes(gzip.compress(b"@b\nAC\n+\nII\n"))
    with pytest.raises(ValueError, match="all FASTA or all FASTQ"):
        _ = GenomeSource([tmp_path], patterns=["b*", "c*"]).fields
    assert set(GenomeSource([tmp_path], patterns=["c*"]).fields) == {"x", "quality"}


@pytest.mark.parametrize("arguments", [{"paths": []}, {"paths": ["a"], "format": "sam"}, {"paths": ["a"], "phred": 32}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        GenomeSource(**arguments)
    with pytest.raises(TypeError):
        GenomeSource("a.fa")


def test_old_qualities_have_another_offset(tmp_path):
    (tmp_path / "a.fq").write_bytes(b"@a\nAC\n+\n@h\n")
    found, _, _ = read_all(GenomeSource([tmp_path], phred=64), 100)
    assert found["a"]["quality"].tolist() == [0, 40]


def test_the_command_and_the_store_are_the_same_for_any_number_of_workers(tmp_path):
    rng = np.random.default_rng(9)
    (tmp_path / "in").mkdir()
    for name in "abc":
        records = ["".join(rng.choice(list("ACGTNacgtn"), size)) for size in rng.integers(1, 9000, 5)]
        (tmp_path / "in" / f"{name}.fa").write_bytes(fasta(records, 60).replace(b">r", b">" + name.encode()))
    prints = set()
    for workers in ("1", "3"):
        arguments = [str(tmp_path / "in"), "--to", str(tmp_path / f"{workers}.zarr"), "--workers", workers]
        options = ["--alphabet", "ACGTN", "--lower", "mask", "--shard-bytes", "4000", "--chunk-bytes", "1000"]
        done = CliRunner().invoke(command, arguments + options)
        assert done.exit_code == 0, done.output
        store = ss.open(tmp_path / f"{workers}.zarr")
        assert set(store.fields) == {"x", "mask"}
        prints.add(store.fingerprint)
    assert len(prints) == 1
    assert len(store) == 15
