"""Audio: the samples of the files for any partitions, and every broken file told."""

import os
import pickle

import numpy as np
import pytest
import soundfile
import soxr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines import audio_files, file_bytes
from streamseq_pipelines.audio import AudioSource, command
from streamseq_pipelines.audio_features import frame_count, resample, to_frames

import streamseq as ss
from streamseq.etl import Skipped, SourceError


def noise(samples, channels=1, seed=0):
    """Samples as int16 [n, channels], or [n] where there is one channel."""
    walk = np.cumsum(np.random.default_rng(seed).standard_normal((samples, channels)) * 300, axis=0)
    values = (walk % 50_000 - 25_000).astype(np.int16)
    return values[:, 0] if channels == 1 else values


def read_all(source, target):
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
            arrays.setdefault(last, []).append(item.arrays["x"])
            if item.attrs is not None:
                assert last not in attrs
                attrs[last] = item.attrs
    return {id: np.concatenate(parts) for id, parts in arrays.items()}, attrs, skipped


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 700),
    channels=st.integers(1, 3),
    suffix=st.sampled_from(["wav", "flac"]),
    target=st.integers(1, 3000),
    piece=st.integers(1, 900),
    on_error=st.sampled_from(["fail", "skip"]),
)
def test_samples_are_the_same_for_any_partitions(tmp_path_factory, samples, channels, suffix, target, piece, on_error):
    folder = tmp_path_factory.mktemp("audio")
    contents = {f"{name}.{suffix}": noise(samples + 7 * name, channels, name) for name in range(2)}
    for name, values in contents.items():
        soundfile.write(folder / name, values, 8000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_files, "PIECE_BYTES", piece)
        patch.setattr(file_bytes, "HELD_BYTES", piece)
        whole = AudioSource([folder], dtype="int16", on_error=on_error)
        assert whole.fields == {"x": ss.Field("int16", () if channels == 1 else (channels,))}
        found, attrs, skipped = read_all(whole, target)
        floats, _, _ = read_all(AudioSource([folder], on_error=on_error), target)
    assert skipped == []
    for name, values in contents.items():
        assert np.array_equal(found[name], values)
        assert np.array_equal(floats[name], values / np.float32(32768))
        assert attrs[name] == {
            "sample_rate": 8000,
            "channels": channels,
            "format": suffix.upper(),
            "subtype": "PCM_16",
            "samples": len(values),
        }


def expected_frames(values, frame, hop):
    count = 1
    while (count - 1) * hop + frame < len(values):
        count += 1
    padded = np.concatenate([values, np.zeros((frame * 2, *values.shape[1:]), values.dtype)])
    return np.stack([padded[number * hop : number * hop + frame] for number in range(count)])


@settings(max_examples=80, deadline=None)
@given(
    samples=st.integers(1, 300),
    channels=st.integers(1, 2),
    frame=st.integers(1, 40),
    shorter=st.integers(0, 39),
    target=st.integers(1, 3000),
    piece=st.integers(1, 300),
)
def test_frames_are_the_same_for_any_partitions_and_have_every_sample(
    tmp_path_factory, samples, channels, frame, shorter, target, piece
):
    hop = max(1, frame - shorter)
    folder = tmp_path_factory.mktemp("frames")
    values = noise(samples, channels)
    soundfile.write(folder / "a.wav", values, 8000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_files, "PIECE_BYTES", piece)
        source = AudioSource([folder], dtype="int16", frame=frame, hop=hop)
        found, _, _ = read_all(source, target)
    expected = expected_frames(values, frame, hop)
    assert found["a.wav"].shape[1:] == source.fields["x"].shape
    assert np.array_equal(found["a.wav"], expected)
    assert frame_count(samples, frame, hop) == len(expected)


@settings(max_examples=30, deadline=None)
@given(
    rates=st.sampled_from([(44100, 16000), (8000, 16000), (16000, 22050), (48000, 47999)]),
    channels=st.integers(1, 2),
    cuts=st.lists(st.integers(1, 5000), max_size=8),
)
def test_resampling_in_blocks_is_resampling_at_once_bit_by_bit(rates, channels, cuts):
    values = (noise(6000, channels).reshape(6000, channels) / np.float32(32768)).astype(np.float32)
    blocks = np.split(values, sorted({cut for cut in cuts if cut < 6000}))
    made = np.concatenate(list(resample(blocks, channels, *rates)))
    assert np.array_equal(made, soxr.resample(values, *rates, quality="HQ"))


def test_large_files_are_cut_where_that_is_exact(tmp_path):
    values = noise(20_000)
    soundfile.write(tmp_path / "a.wav", values, 8000)
    soundfile.write(tmp_path / "b.flac", values, 8000)
    soundfile.write(tmp_path / "c.ogg", values, 8000)
    soundfile.write(tmp_path / "d.wav", values / 32768, 8000, subtype="FLOAT")

    def cut(**options):
        partitions = AudioSource([tmp_path], dtype="int16", **options).partitions(4000)
        return {partition.continues for partition in partitions} - {None}

    assert cut() == {"a.wav", "b.flac", "d.wav"}
    assert cut(on_error="skip") == {"a.wav"}
    assert cut(sample_rate=8000) == {"a.wav", "b.flac", "d.wav"}
    assert cut(sample_rate=16000) == set()
    found, _, _ = read_all(AudioSource([tmp_path], dtype="int16"), 4000)
    lossy, _ = soundfile.read(tmp_path / "c.ogg", dtype="float32")
    assert np.array_equal(found["c.ogg"], np.clip(np.rint(lossy * 32768), -32768, 32767))
    for name in ("a.wav", "b.flac", "d.wav"):
        assert np.array_equal(found[name], values)


def test_resampled_files_say_both_rates_and_are_soxr_s(tmp_path):
    values = noise(5000, 2)
    soundfile.write(tmp_path / "a.wav", values, 44100)
    found, attrs, _ = read_all(AudioSource([tmp_path], sample_rate=16000, mono=True), 1000)
    mono = (values / np.float32(32768)).mean(axis=1, dtype=np.float32)
    assert np.array_equal(found["a.wav"], soxr.resample(mono, 44100, 16000))
    assert (attrs["a.wav"]["sample_rate"], attrs["a.wav"]["original_sample_rate"]) == (16000, 44100)
    assert attrs["a.wav"]["channels"] == 2


def test_mono_is_the_mean_of_the_channels_whatever_their_number(tmp_path):
    for channels in (1, 2, 3):
        soundfile.write(tmp_path / f"{channels}.wav", noise(100, channels), 8000)
    found, _, _ = read_all(AudioSource([tmp_path], mono=True), 1000)
    for channels in (1, 2, 3):
        values = (noise(100, channels).reshape(100, channels) / np.float32(32768)).mean(axis=1, dtype=np.float32)
        assert np.array_equal(found[f"{channels}.wav"], values)


def cut_off(data):
    return data[: len(data) * 2 // 3]


def nothing_but_a_name(data):
    return b"this is text"


def without_last_page(data):
    return data[: data.rindex(b"OggS")]


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x55]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    ("suffix", "harm", "reason"),
    [
        ("wav", cut_off, "the WAV data ends early"),
        ("flac", cut_off, "the FLAC data"),
        ("ogg", cut_off, "the OGG data ends early"),
        ("wav", nothing_but_a_name, "is no audio that can be read"),
        ("flac", flip, "the FLAC data"),
        ("ogg", flip, "the OGG data is damaged"),
        ("ogg", lambda data: data[:-300] + data[-200:], "the OGG data"),
        ("ogg", without_last_page, "the OGG data ends early: its last page is missing"),
    ],
)
@pytest.mark.parametrize("held", [64 << 20, 100])
@pytest.mark.parametrize("target", [10**6, 3000])
def test_of_a_broken_file_nothing_is_written_and_the_others_are_read(
    tmp_path, monkeypatch, suffix, harm, reason, held, target
):
    monkeypatch.setattr(file_bytes, "HELD_BYTES", held)
    monkeypatch.setattr(audio_files, "PIECE_BYTES", 4000)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.{suffix}", noise(20_000), 8000)
    bad = tmp_path / f"b.{suffix}"
    bad.write_bytes(harm(bad.read_bytes()))
    with pytest.raises(SourceError, match=reason):
        read_all(AudioSource([tmp_path]), target)
    for on_error in ("skip", "quarantine"):
        found, _, [skipped] = read_all(AudioSource([tmp_path], on_error=on_error), target)
        assert set(found) == {f"a.{suffix}", f"c.{suffix}"}
        assert {len(values) for values in found.values()} == {20_000}
        assert skipped.what == str(bad)
        assert skipped.reason.startswith(reason)
        assert skipped.num_bytes == bad.stat().st_size


@pytest.mark.parametrize("target", [10**6, 3000])
def test_samples_that_are_not_finite_other_channels_and_no_samples_are_told(tmp_path, target):
    values = noise(20_000) / np.float32(32768)
    soundfile.write(tmp_path / "a.wav", values, 8000, subtype="FLOAT")
    values[7000] = np.nan
    soundfile.write(tmp_path / "b.wav", values, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "c.wav", noise(20_000, 2), 8000)
    soundfile.write(tmp_path / "d.wav", noise(0), 8000)
    (tmp_path / "e.wav").touch()
    found, _, skipped = read_all(AudioSource([tmp_path], on_error="skip"), target)
    assert set(found) == {"a.wav"}
    assert [(os.path.basename(item.what), item.place, item.reason) for item in skipped] == [
        ("b.wav", "sample 7000", "it is not a finite number"),
        ("c.wav", "", "has 2 channels, the store has 1: ask for mono"),
        ("d.wav", "", "it has no samples"),
        ("e.wav", "", "empty"),
    ]
    for name, message in (("b", "sample 7000: it is not a finite number"), ("c", "has 2 channels")):
        with pytest.raises(SourceError, match=message):
            read_all(AudioSource([tmp_path / f"{name}.wav"], channels=1), target)


def test_a_file_that_changes_is_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(100), 8000)
    source = AudioSource([tmp_path], on_error="skip")
    [partition] = source.partitions(1000)
    soundfile.write(tmp_path / "a.wav", noise(101), 8000)
    [skipped] = source.read(partition)
    assert skipped.reason.startswith("changed while it was ingested")
    os.remove(tmp_path / "a.wav")
    [skipped] = source.read(partition)
    assert skipped.reason == "cannot be read: No such file or directory"


def test_folders_give_their_audio_files_only(tmp_path):
    soundfile.write(tmp_path / "a.WAV", noise(10), 8000, format="WAV")
    (tmp_path / "readme.txt").write_text("not audio")
    assert list(read_all(AudioSource([tmp_path]), 100)[0]) == ["a.WAV"]


def test_int16_is_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([-2, -1, 0.5, 1, 2], np.float32), 8000, subtype="FLOAT")
    found, _, _ = read_all(AudioSource([tmp_path], dtype="int16"), 100)
    assert found["a.wav"].tolist() == [-32768, -32768, 16384, 32767, 32767]


def test_frames_of_blocks_of_nothing_are_none():
    assert list(to_frames([], 4, 2)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"paths": []},
        {"dtype": "float64"},
        {"sample_rate": 0},
        {"frame": 0},
        {"hop": 3},
        {"frame": 3, "hop": 4},
        {"channels": 0},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        AudioSource(**{"paths": ["a.wav"], **arguments})
    with pytest.raises(TypeError):
        AudioSource("a.wav")


@pytest.mark.parametrize(("name", "options"), [("soundfile", {}), ("soxr", {"sample_rate": 8000})])
def test_without_the_packages_one_line_says_what_to_install(monkeypatch, name, options):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=rf"package {name}: pip install 'streamseq\[audio\]'"):
        AudioSource(["a.wav"], **options)


def test_the_command_and_the_store_are_the_same_for_any_number_of_workers(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(4):
        soundfile.write(tmp_path / "in" / f"{number}.flac", noise(3000 + number, 2, number), 8000)
    prints = set()
    for workers in ("1", "3"):
        arguments = [str(tmp_path / "in"), "--to", str(tmp_path / f"{workers}.zarr"), "--workers", workers]
        options = ["--frame", "100", "--hop", "50", "--shard-bytes", "40000", "--chunk-bytes", "4000", "--json"]
        done = CliRunner().invoke(command, arguments + options)
        assert done.exit_code == 0, done.output
        store = ss.open(tmp_path / f"{workers}.zarr")
        assert store.fields == {"x": ss.Field("float32", (100, 2))}
        prints.add(store.fingerprint)
    assert len(prints) == 1
