"""The demo goes the whole road, leaves what it says, and removes only what a demo made."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

import streamseq as ss
from streamseq.training import load_checkpoint, load_model, train
from streamseq.training.baselines import baselines
from streamseq.training.demo import SETTINGS, demo, standard_library

SMALL = replace(
    SETTINGS, updates=1000, hidden=16, lanes=4, log_every=20, held_out=0.3, held_out_timesteps=5000, threads=1
)


def some_files():
    return [path for path in standard_library() if path.stat().st_size > 500][:12]


def test_the_demo_is_stopped_half_way_and_ends_like_a_run_that_is_not(tmp_path, capfd):
    # One that failed was there before; what is not the demo's own is kept.
    out = tmp_path / "demo"
    with pytest.raises(ss.StreamseqError, match="streamseq ingest failed with exit code"):
        demo(str(out), say=lambda line: None, sources=[tmp_path / "no.py"], settings=SMALL)
    assert "no.py" in capfd.readouterr().err
    (out / "run").mkdir()
    (out / "run" / "left").touch()
    (out / "notes.txt").write_text("mine")
    lines = []
    result = demo(str(out), say=lines.append, sources=some_files(), settings=SMALL)
    assert 500 <= result.stopped_at < 1000 == result.updates
    assert load_model(result.checkpoint)[1] == replace(SMALL, task="language")
    whole = train(result.store, tmp_path / "whole", SMALL)
    assert result.held_out_bits_per_byte == whole.held_out_bits_per_byte
    once, twice = (load_checkpoint(path)["model"] for path in (whole.checkpoint, result.checkpoint))
    assert all(bool((once[name] == twice[name]).all()) for name in once)
    story = "\n".join(lines)
    for text in ("order 0", "zlib", result.store, result.checkpoint, "--resume", result.sample.splitlines()[0]):
        assert text in story
    assert len(story.splitlines()) < 50
    assert not (out / "run" / "left").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(ValueError, match="holds something that no demo made"):
        demo(str(tmp_path), say=lambda line: None, sources=some_files(), settings=SMALL)
    file = tmp_path / "run" / "precious"
    with pytest.raises(ValueError, match="holds something that no demo made"):
        demo(str(file), say=lambda line: None, sources=some_files(), settings=SMALL)
    assert file.read_text() == "x"


def test_the_standard_library_is_found_without_what_is_installed_beside_it():
    files = standard_library()
    assert len(files) > 300
    assert not [path for path in files if "site-packages" in path.parts]
    assert {"abc.py", "argparse.py"} <= {path.name for path in files}


def test_baselines_are_what_their_definitions_say():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, 1 << 14, dtype=np.uint8).tobytes(), b"\0" * (1 << 14)]
    found = baselines(texts)
    shares = np.bincount(np.frombuffer(b"".join(texts), np.uint8)) / (1 << 15)
    assert found.order_0 == pytest.approx(-sum(p * np.log2(p) for p in shares))
    assert found.zlib_each == 8 * sum(len(zlib.compress(text, 9)) for text in texts) / (1 << 15)
    assert found.zlib_joined == 8 * len(zlib.compress(b"".join(texts), 9)) / (1 << 15)
    assert baselines([b"aaaa"]).order_0 == 0
    with pytest.raises(ValueError, match="at least one byte"):
        baselines([b""])
