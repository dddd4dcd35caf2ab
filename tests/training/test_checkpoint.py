"""A checkpoint is whole or absent, holds everything, and refuses what is not its own."""

import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

import streamseq as ss
from streamseq.training import load_checkpoint, read_checkpoint, save_checkpoint


def stepped(seed=0, size=3):
    torch.manual_seed(seed)
    model = nn.Linear(size, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, size)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_model_optimizer_and_random_generators_come_back(tmp_path):
    model, optimizer = stepped()
    save_checkpoint(tmp_path / "c.pt", model=model, optimizer=optimizer, progress={"updates": 3})
    drawn = torch.rand(4)
    other, other_optimizer = stepped(seed=5)
    parts = load_checkpoint(tmp_path / "c.pt", model=other, optimizer=other_optimizer)
    assert torch.equal(torch.rand(4), drawn)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other_optimizer.state_dict()["state"][0]["exp_avg"], optimizer.state[model.weight]["exp_avg"])
    assert parts["progress"] == {"updates": 3}


def test_the_file_opens_with_weights_only_and_lies_alone(tmp_path):
    model, optimizer = stepped()
    save_checkpoint(tmp_path / "c.pt", model=model, optimizer=optimizer)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["format"] == "streamseq checkpoint"
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path):
    model, _ = stepped()
    save_checkpoint(tmp_path / "c.pt", model=model)
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(TypeError, match="cannot pickle"):
        save_checkpoint(tmp_path / "c.pt", model=model, extra={"bad": (each for each in "ab")})
    assert (tmp_path / "c.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]


def test_the_new_file_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.path.isdir(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    save_checkpoint(tmp_path / "c.pt", progress={})
    assert events == [False, "replace", True]


def test_a_checkpoint_cut_short_anywhere_is_refused(tmp_path):
    model, optimizer = stepped()
    save_checkpoint(tmp_path / "c.pt", model=model, optimizer=optimizer)
    whole = (tmp_path / "c.pt").read_bytes()
    for length in {0, 1, 4, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        (tmp_path / "c.pt").write_bytes(whole[:length])
        with pytest.raises(ss.ResumeError, match="is not a whole checkpoint") as caught:
            load_checkpoint(tmp_path / "c.pt", model=model)
        assert "\n" not in str(caught.value)


def test_a_changed_parameter_is_found(tmp_path):
    model, _ = stepped()
    save_checkpoint(tmp_path / "c.pt", model=model)
    content = bytearray((tmp_path / "c.pt").read_bytes())
    weight = model.weight.detach().numpy().tobytes()
    content[content.index(weight) + 3] ^= 1
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ss.ResumeError, match="is damaged"):
        read_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("content", [b"once upon a time" * 100, "pickle", "tensors"])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "c.pt"
    if content == "pickle":
        torch.save({"format": "streamseq checkpoint", "model": nn.Linear(1, 1)}, path)
    elif content == "tensors":
        torch.save(OrderedDict(weight=torch.ones(2)), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ss.ResumeError, match=r"not a whole checkpoint|not a checkpoint that save_checkpoint wrote"):
        read_checkpoint(path)


def test_a_missing_file_a_folder_and_another_format_version_are_refused(tmp_path):
    with pytest.raises(ss.ResumeError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "c.pt")
    with pytest.raises(ss.ResumeError, match="cannot be read"):
        read_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "c.pt", progress={})
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save(content | {"format_version": 9}, tmp_path / "c.pt")
    with pytest.raises(ss.ResumeError, match=r"has version 9 .* reads version 1"):
        read_checkpoint(tmp_path / "c.pt")


def test_another_setting_is_refused_by_both_values(tmp_path):
    model, _ = stepped()
    save_checkpoint(tmp_path / "c.pt", settings={"lanes": 16, "k1": 8}, model=model)
    load_checkpoint(tmp_path / "c.pt", settings={"k1": 8}, model=model)
    with pytest.raises(ss.ResumeError, match="saved with lanes=16, this run has lanes=32"):
        load_checkpoint(tmp_path / "c.pt", settings={"lanes": 32}, model=model)
    with pytest.raises(ss.ResumeError, match="saved without k2"):
        load_checkpoint(tmp_path / "c.pt", settings={"k2": 3}, model=model)


def test_parts_that_are_not_there_or_do_not_fit_are_refused_in_one_line(tmp_path):
    model, optimizer = stepped()
    save_checkpoint(tmp_path / "c.pt", model=model)
    with pytest.raises(ss.ResumeError, match="holds model, not 'optimizer'"):
        load_checkpoint(tmp_path / "c.pt", optimizer=optimizer)
    with pytest.raises(ss.ResumeError, match=r"the model in .* is of another kind") as caught:
        load_checkpoint(tmp_path / "c.pt", model=nn.Linear(5, 2))
    assert "\n" not in str(caught.value)


def test_a_part_without_a_state_is_refused(tmp_path):
    with pytest.raises(TypeError, match="has state_dict"):
        save_checkpoint(tmp_path / "c.pt", step=3)
    assert os.listdir(tmp_path) == []
