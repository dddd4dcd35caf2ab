"""Settings are taken from a search or a run, but for how long it went on."""

import shutil

import pytest
from corpus import make_settings, make_store

import streamseq as ss
from streamseq.training import TrainingSettings, save_checkpoint, settings_like, train

pytestmark = pytest.mark.usefixtures("undrawn")


def test_settings_are_those_of_the_run_but_for_its_budget(tmp_path):
    settings = make_settings(updates=3, seconds=100.0, dropout=0.1, log_every=7)
    result = train(make_store(), tmp_path / "run", settings)
    usual = TrainingSettings()
    for place in (tmp_path / "run", result.checkpoint):
        like = settings_like(place)
        for name in ("k1", "k2", "lanes", "hidden", "embedding", "dropout", "held_out", "warmup"):
            assert getattr(like, name) == getattr(settings, name) != getattr(usual, name), name
        for name in ("updates", "seconds", "epochs", "threads", "log_every", "evaluate_every", "checkpoint_every"):
            assert getattr(like, name) == getattr(usual, name), name
    assert settings_like(tmp_path / "run", k2=64, updates=5) == TrainingSettings(
        **{name: getattr(like, name) for name in TrainingSettings.__dataclass_fields__} | {"k2": 64, "updates": 5}
    )
    # The best one of a search lies beside its trials.
    (tmp_path / "search").mkdir()
    shutil.copyfile(result.checkpoint, tmp_path / "search/best.pt")
    assert settings_like(tmp_path / "search") == like


def test_there_must_be_something_to_take_them_from(tmp_path):
    with pytest.raises(ss.ResumeError, match=r"has neither best\.pt nor checkpoint\.pt"):
        settings_like(tmp_path)
    save_checkpoint(tmp_path / "other.pt", settings={"mine": 1})
    with pytest.raises(ss.ResumeError, match="not a checkpoint of the trainer"):
        settings_like(tmp_path / "other.pt")
