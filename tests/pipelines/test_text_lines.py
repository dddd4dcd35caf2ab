"""Lines, documents and tokens: the same for any partitions, and every broken one told with its place."""

import gzip
import io
import json
import os
import pickle
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streamseq_pipelines import file_bytes, text_blocks, text_read, text_tokens
from streamseq_pipelines.files import find_files
from streamseq_pipelines.text import TextSource, command
from streamseq_pipelines.text_lines import Run, read_lines
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import streamseq as ss
from streamseq.etl import Skipped, SourceError

LINES = st.lists(
    st.one_of(
        st.binary(max_size=12), st.sampled_from([b"", b"\r", b"  indented", b"caf\xc3\xa9", b"\xff", b"word " * 9])
    ),
    max_size=30,
).map(b"\n".join)


def read_all(source, target):
    """Arrays by id, attributes by id, and what was left out."""
    arrays, attrs, skipped, last = {}, {}, [], None
    partitions = source.partitions(target)
    source, partitions = pickle.loads(pickle.dumps((source, partitions)))
    for partition in partitions:
        items = list(source.read(partition))
        first = next((item.id for item in items if not isinstance(item, Skipped)), None)
        assert first is None or partition.continues in (None, first)
        for item in items:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            assert item.id == last or item.id not in arrays, "pieces of one id follow each other"
            last = item.id
            arrays.setdefault(last, []).append(item.arrays["x"])
            attrs.setdefault(last, item.attrs)
    return {id: np.concatenate(parts) for id, parts in arrays.items()}, attrs, skipped


def texts(arrays):
    return {id: array.tobytes() for id, array in arrays.items()}


def expected_lines(name, data):
    found, offset = {}, 0
    for line in data.splitlines(keepends=True) if b"\r" not in data else io.BytesIO(data).readlines():
        bare = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
        if bare:
            found[f"{name}@{offset}"] = bare
        offset += len(line)
    return found


@settings(max_examples=150, deadline=None)
@given(data=LINES.filter(bool), target=st.integers(1, 200), piece=st.integers(1, 30))
@example(data=b"\n\na\n", target=1, piece=1)
def test_lines_are_the_same_for_any_partitions_and_pieces(tmp_path_factory, data, target, piece):
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_bytes, "PIECE_BYTES", piece)
        arrays, _, skipped = read_all(TextSource([folder], lines=True), target)
    assert texts(arrays) == expected_lines("a", data)
    assert skipped == []


@settings(max_examples=100, deadline=None)
@given(data=LINES.filter(bool), target=st.integers(1, 200), longest=st.integers(1, 20), piece=st.integers(1, 30))
def test_lines_that_are_too_long_are_told_and_no_others_are_lost(tmp_path_factory, data, target, longest, piece):
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_bytes, "PIECE_BYTES", piece)
        source = TextSource([folder], lines=True, longest_line=longest, on_error="quarantine")
        arrays, _, skipped = read_all(source, target)
    whole = io.BytesIO(data).readlines()
    long = [len(line) for line in whole if len(line) > longest]
    assert [item.num_bytes for item in skipped] == long
    kept = {id: line for id, line in expected_lines("a", data).items() if id in texts(arrays)}
    assert texts(arrays) == kept
    offsets = np.cumsum([0, *map(len, whole)])
    short = [
        f"a@{at}" for at, line in zip(offsets, whole, strict=False) if len(line) <= longest and line.strip(b"\r\n")
    ]
    assert set(short) <= set(arrays)


def test_lines_say_their_number_in_whole_files_and_their_byte_in_parts(tmp_path, tokenizer):
    (tmp_path / "a").write_bytes(b"good\n\n" + b"bad \xff\n" + b"good\n")
    for target, place in ((1000, "line 3"), (5, "byte 6")):
        source = TextSource([tmp_path], lines=True, tokenizer=tokenizer, on_error="quarantine")
        arrays, _, [skipped] = read_all(source, target)
        assert list(arrays) == ["a@0", "a@12"]
        assert (skipped.place, skipped.content, skipped.num_bytes) == (place, b"bad \xff", 5)
        assert skipped.reason == "not UTF-8: byte 4 of the line is 0xff"
        with pytest.raises(SourceError, match=rf"a', {place}: not UTF-8"):
            read_all(TextSource([tmp_path], lines=True, tokenizer=tokenizer), target)


def test_bytes_need_not_be_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\n\xfe")
    assert texts(read_all(TextSource([tmp_path], lines=True), 10)[0]) == {"a@0": b"\xff", "a@2": b"\xfe"}


# Documents


def jsonl(records):
    return b"".join(
        (record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n" for record in records
    )


@settings(max_examples=60, deadline=None)
@given(
    found=st.lists(st.text(max_size=20).filter(lambda text: text.isprintable()), min_size=1, max_size=20),
    target=st.integers(1, 300),
    packed=st.booleans(),
)
def test_documents_are_the_same_for_any_partitions(tmp_path_factory, found, target, packed):
    folder = tmp_path_factory.mktemp("documents")
    data = jsonl([{"text": text, "key": number, "other": [1]} for number, text in enumerate(found)])
    (folder / ("a.jsonl.gz" if packed else "a.jsonl")).write_bytes(gzip.compress(data) if packed else data)
    source = TextSource([folder], jsonl_field="text", id_field="key")
    arrays, attrs, skipped = read_all(source, target)
    assert texts(arrays) == {f"{number}": text.encode() for number, text in enumerate(found) if text}
    assert len(skipped) == found.count("")
    assert {item.reason for item in skipped} <= {"the text is empty"}
    for number, text in enumerate(found):
        if text:
            assert data[attrs[f"{number}"]["byte"] :].startswith(b'{"text": ')
    one, _, _ = read_all(TextSource([folder], jsonl_field="text", one_sequence=True), target)
    assert texts(one).get("text", b"") == "".join(found).encode()


BROKEN = {
    b'{"text": "a"': "not JSON: Expecting ',' delimiter at character 13",
    b'{"text": "\xff"}': "not UTF-8: byte 10 of the line is 0xff",
    b"[1]": "not a JSON object",
    b'{"key": "x"}': "there is no field 'text'",
    b'{"text": 3, "key": 4}': "field 'text' is not a string",
    b'{"text": "a"}': "there is no field 'key'",
    b'{"text": "a", "key": true}': "field 'key', the id, is not a string with characters or an integer",
    b'{"text": "a", "key": ""}': "field 'key', the id, is not a string with characters or an integer",
    b'{"text": "\\ud800", "key": 1}': "field 'text' has half a surrogate pair, which is no text",
    b"[" * 100_000: "not JSON that can be read",
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.items(), ids=range(len(BROKEN)))
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_document_is_told_and_the_others_are_read(tmp_path, line, reason, packed):
    data = jsonl([{"text": "one", "key": "1"}, line, {"text": "two", "key": "2"}])
    (tmp_path / ("a.gz" if packed else "a")).write_bytes(gzip.compress(data) if packed else data)
    made = {"jsonl_field": "text", "id_field": "key"}
    with pytest.raises(SourceError, match=r"line 2: "):
        read_all(TextSource([tmp_path], **made), 10**7)
    for on_error, content in (("skip", None), ("quarantine", line)):
        arrays, _, [skipped] = read_all(TextSource([tmp_path], **made, on_error=on_error), 10**7)
        assert texts(arrays) == {"1": b"one", "2": b"two"}
        assert (skipped.place, skipped.content, skipped.num_bytes) == ("line 2", content, len(line))
        assert skipped.reason.startswith(reason)


def test_a_byte_order_mark_is_no_part_of_the_first_document(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + jsonl([{"text": "one"}]))
    assert texts(read_all(TextSource([tmp_path], jsonl_field="text"), 100)[0]) == {"a@0": b"one"}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_an_id_that_comes_twice_in_a_row_never_makes_one_sequence_of_two(tmp_path, apart, on_error):
    data = jsonl([{"text": "one" * 10, "key": "k"}, {"text": "two" * 10, "key": "k"}])
    (tmp_path / "a").write_bytes(data)
    source = TextSource([tmp_path / "a"], jsonl_field="text", id_field="key", on_error=on_error)
    with pytest.raises((SourceError, ValueError), match="'k'"):
        ss.ingest(source, tmp_path / "s.zarr", shard_bytes=len(data) // 2 if apart else None)


def test_an_id_that_comes_twice_in_a_row_is_told_with_its_file(tmp_path):
    (tmp_path / "a").write_bytes(jsonl([{"text": "one", "key": "k"}, {"text": "two", "key": "k"}]))
    with pytest.raises(SourceError, match=r"'k' comes twice in '.*a': make them unique"):
        read_all(TextSource([tmp_path], jsonl_field="text", id_field="key", on_error="skip"), 1000)


# Compressed files


def packed(data, codec, members=1):
    parts = [data[len(data) * n // members : len(data) * (n + 1) // members] for n in range(members)]
    if codec == "gz":
        return b"".join(map(gzip.compress, parts))
    return b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in parts)


@pytest.mark.parametrize("codec", ["gz", "zst"])
@pytest.mark.parametrize("members", [1, 3])
def test_compressed_files_are_decoded_whatever_they_are_made_of(tmp_path, codec, members):
    data = np.random.default_rng(2).integers(0, 50, 9 << 20, np.uint8).tobytes()
    (tmp_path / f"a.{codec}").write_bytes(packed(data, codec, members))
    (tmp_path / "b").write_bytes(b"plain")
    arrays, _, _ = read_all(TextSource([tmp_path]), 1000)
    assert texts(arrays) == {f"a.{codec}": data, "b": b"plain"}


def cut_off(data):
    return data[:-9]


def flip(data):
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]


def append(data):
    return data + b"what is this"


@pytest.mark.parametrize(
    ("harm", "reason", "place"),
    [
        (cut_off, "the gzip data ends early", "byte {}"),
        (flip, "the gzip data is damaged here or before", "byte {}"),
        (append, "the gzip data is damaged here or before", "byte {}"),
        (lambda data: b"no gzip", "the gzip data is damaged here or before", "byte {}"),
    ],
)
@pytest.mark.parametrize("held", [64 << 20, 1000])
@pytest.mark.parametrize("made", [{}, {"lines": True}, {"jsonl_field": "text"}])
def test_of_a_damaged_compressed_file_nothing_is_written(tmp_path, monkeypatch, harm, reason, place, held, made):
    monkeypatch.setattr(file_bytes, "HELD_BYTES", held)
    monkeypatch.setattr(file_bytes, "PIECE_BYTES", 700)
    good = jsonl([{"text": "x" * n} for n in range(1, 200)])
    (tmp_path / "a.gz").write_bytes(gzip.compress(good))
    (tmp_path / "b.gz").write_bytes(harm(gzip.compress(good)))
    (tmp_path / "c.gz").write_bytes(gzip.compress(good))
    size = (tmp_path / "b.gz").stat().st_size
    with pytest.raises(SourceError, match=rf"b\.gz', byte {size}: {reason}"):
        read_all(TextSource([tmp_path], **made), 10**7)
    for on_error in ("skip", "quarantine"):
        arrays, _, [skipped] = read_all(TextSource([tmp_path], **made, on_error=on_error), 10**7)
        assert {id.partition("@")[0] for id in arrays} == {"a.gz", "c.gz"}
        assert (skipped.what, skipped.place) == (str(tmp_path / "b.gz"), place.format(size))
        assert skipped.reason.startswith(reason)
        assert skipped.num_bytes == size


def test_one_unreadable_file_among_many_is_left_out(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_bytes(b"x" * (number + 1))
    source = TextSource([tmp_path], on_error="skip")
    partitions = source.partitions(10**6)
    os.remove(tmp_path / "123.txt")
    found = [item for partition in partitions for item in source.read(partition)]
    assert sum(not isinstance(item, Skipped) for item in found) == 299
    [skipped] = [item for item in found if isinstance(item, Skipped)]
    assert (skipped.what, skipped.num_bytes) == (str(tmp_path / "123.txt"), 124)


# Tokens

WORDS = ["one", "two", "three", "café", "naïve", "x", "return", "def", "{}", "...", "2026"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer, trained on words from a seed."""
    rng = np.random.default_rng(7)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([" ".join(rng.choice(WORDS, 50)) for _ in range(50)], trainer)
    made.enable_truncation(5)
    made.enable_padding(length=5)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def plain(path):
    made = Tokenizer.from_file(str(path))
    made.no_truncation()
    made.no_padding()
    return made


@settings(max_examples=80, deadline=None)
@given(
    lines=st.lists(st.lists(st.sampled_from([*WORDS, " ", "\t"]), max_size=8).map(" ".join), min_size=2, max_size=60),
    end=st.sampled_from(["\n", "\r\n"]),
    target=st.integers(1, 400),
    cell=st.integers(1, 90),
    piece=st.integers(1, 100),
)
def test_tokens_are_the_same_for_any_partitions(tmp_path_factory, tokenizer, lines, end, target, cell, piece):
    folder = tmp_path_factory.mktemp("tokens")
    text = end.join(lines)
    (folder / "a").write_bytes(text.encode())
    if not text:
        return
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (text_blocks, text_read, __import__("streamseq_pipelines.text", fromlist=["x"])):
            patch.setattr(module, "BLOCK_BYTES", cell)
        patch.setattr(file_bytes, "PIECE_BYTES", piece)
        for size in (10**6, target):
            arrays, _, skipped = read_all(TextSource([folder], tokenizer=tokenizer), size)
            assert skipped == []
            assert {array.dtype for array in arrays.values()} <= {np.dtype("uint16")}
            found.append(arrays["a"].tolist())
    assert found[0] == found[1]
    assert plain(tokenizer).decode(found[0], skip_special_tokens=False) == text


@settings(max_examples=150, deadline=None)
@given(data=LINES.filter(bool), cell=st.integers(1, 40), longest=st.integers(3, 60), unit=st.integers(1, 5))
def test_blocks_of_parts_are_those_of_the_whole(tmp_path_factory, data, cell, longest, unit):
    path = tmp_path_factory.mktemp("blocks") / "a"
    path.write_bytes(data)
    [file] = find_files([str(path)])

    def blocks(start, stop):
        lines = read_lines(
            file, start, min(len(data), (stop or len(data)) + cell), longest=longest, sure=False, whole=False
        )
        for block in text_blocks.blocks_of(lines, start, stop, cell):
            yield [item.data.tobytes() if isinstance(item, Run) else item.num_bytes for item in block]

    borders = [*range(0, len(data), cell * unit), None]
    parts = [block for start, stop in pairwise(borders) for block in blocks(start, stop)]
    assert parts == list(blocks(0, None))
    held = [item if isinstance(item, bytes) else bytes(item) for block in parts for item in block]
    assert sum(map(len, held)) == len(data)


def test_tokens_of_text_with_paragraphs_are_those_of_the_whole_text(tmp_path, tokenizer, monkeypatch):
    rng = np.random.default_rng(3)
    text = "".join(" ".join(rng.choice(WORDS, 6)) + rng.choice(["\n", "\n\n", "\n  "]) for _ in range(400))
    (tmp_path / "a").write_bytes(text.encode())
    for module in (text_blocks, text_read, __import__("streamseq_pipelines.text", fromlist=["x"])):
        monkeypatch.setattr(module, "BLOCK_BYTES", 500)
    expected = plain(tokenizer).encode(text, add_special_tokens=False).ids
    for target in (10**6, 3000):
        arrays, _, _ = read_all(TextSource([tmp_path], tokenizer=tokenizer), target)
        assert arrays["a"].tolist() == expected


def test_lines_that_are_not_text_are_left_out_of_the_tokens_of_a_file(tmp_path, tokenizer, monkeypatch):
    for module in (text_blocks, text_read, __import__("streamseq_pipelines.text", fromlist=["x"])):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    lines = [f"one two {number}\n".encode() for number in range(100)]
    bad = {7: b"\xff\xfe\n", 8: b"three \xc3\n", 60: b"\xe9t\xe9\n"}
    for number, line in bad.items():
        lines[number] = line
    data = b"".join(lines)
    (tmp_path / "a").write_bytes(data)
    good = "".join(line.decode() for number, line in enumerate(lines) if number not in bad)
    for target in (10**6, 300):
        with pytest.raises(SourceError, match="not UTF-8: byte 0 of the line is 0xff"):
            read_all(TextSource([tmp_path], tokenizer=tokenizer), target)
        arrays, _, skipped = read_all(TextSource([tmp_path], tokenizer=tokenizer, on_error="quarantine"), target)
        assert plain(tokenizer).decode(arrays["a"].tolist()) == good
        assert [item.content for item in skipped] == list(bad.values())
        places = [f"line {number + 1}" if target > 300 else f"byte {data.index(line)}" for number, line in bad.items()]
        assert [item.place for item in skipped] == places


def test_many_tokens_need_more_bytes(tmp_path):
    vocabulary = {f"w{number}": number for number in range(70_000)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(tmp_path / "tokenizer.json"))
    assert TextSource(["x"], tokenizer=tmp_path / "tokenizer.json").fields == {"x": ss.Field("uint32")}


def test_long_texts_are_cut_for_the_tokenizer_at_line_ends_and_spaces(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(text_tokens, "_LONGEST_TEXT", 20)
    text = "one two three one two three\none two onetwothreeonetwothreeonetwothree"
    (tmp_path / "a").write_text(json.dumps({"text": text}))
    arrays, _, _ = read_all(TextSource([tmp_path], jsonl_field="text", tokenizer=tokenizer), 1000)
    assert plain(tokenizer).decode(arrays["a@0"].tolist()) == text


def test_a_tokenizer_that_is_none_or_another_one_is_told(tmp_path, tokenizer):
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no\.json' is no tokenizer"):
        TextSource(["x"], tokenizer=tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        TextSource(["x"], tokenizer=tmp_path / "nowhere.json")
    (tmp_path / "a").write_bytes(b"one")
    mine = tmp_path / "mine.json"
    mine.write_bytes(tokenizer.read_bytes())
    source = TextSource([tmp_path / "a"], tokenizer=mine)
    mine.write_bytes(tokenizer.read_bytes() + b"\n")
    text_tokens._load.cache_clear()
    with pytest.raises(ValueError, match="not the one that the job began with"):
        read_all(source, 100)


def test_without_the_package_one_line_says_what_to_install(tmp_path, tokenizer, monkeypatch):
    text_tokens._load.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'streamseq\[tokenizers\]'"):
        TextSource(["x"], tokenizer=tokenizer)


# The job


@pytest.mark.parametrize("made", [{"lines": True}, {"jsonl_field": "text", "id_field": "key"}, {"tokenizer": True}])
def test_the_store_is_the_same_for_any_number_of_workers(tmp_path, tokenizer, made):
    made = {**made, "tokenizer": tokenizer} if "tokenizer" in made else made
    rng = np.random.default_rng(5)
    for name in range(5):
        records = [{"text": " ".join(rng.choice(WORDS, 9)), "key": f"{name}-{number}"} for number in range(200)]
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(jsonl(records))
    prints = set()
    for workers in (1, 3):
        source = TextSource([tmp_path / "in"], **made)
        report = ss.ingest(source, tmp_path / f"{workers}.zarr", workers=workers, shard_bytes=8000, chunk_bytes=800)
        prints.add(ss.open(report.store).fingerprint)
    assert len(prints) == 1


def test_the_command_takes_all_of_it(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "one two", "key": "k"}, b"broken"]))
    options = ["--jsonl-field", "text", "--id-field", "key", "--tokenizer", str(tokenizer), "--on-error", "skip"]
    done = CliRunner().invoke(
        command, [str(tmp_path / "a.jsonl"), "--to", str(tmp_path / "s.zarr"), *options, "--json"]
    )
    assert done.exit_code == 0, done.output
    store = ss.open(tmp_path / "s.zarr")
    assert store.read("k")["x"].tolist() == plain(tokenizer).encode("one two").ids
    assert store.attrs("k") == {"file": "a.jsonl", "byte": 0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"lines": True, "one_sequence": True},
        {"lines": True, "jsonl_field": "text"},
        {"id_field": "key"},
        {"jsonl_field": "text", "id_field": "key", "one_sequence": True},
        {"longest_line": 0},
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments):
    with pytest.raises(ValueError):
        TextSource(["a"], **arguments)
