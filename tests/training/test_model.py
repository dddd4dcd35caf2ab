"""The reference model computes what its docstring says, and samples without side effects."""

import numpy as np
import pytest
import torch
from torch import nn

import streamseq as ss
from streamseq.training import ByteLanguageModel, next_byte_loss


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_sequence_in_parts_gives_the_logits_of_the_whole(cell, dtype):
    torch.manual_seed(0)
    model = ByteLanguageModel(cell=cell, hidden=8, embedding=4, layers=2)
    x = torch.randint(0, 256, (3, 10), dtype=dtype)
    whole, _ = model(x, None)
    first, state = model(x[:, :4], None)
    second, _ = model(x[:, 4:], state)
    assert whole.shape == (3, 10, 256)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_the_loss_is_the_negative_log_probability_of_the_target():
    store = ss.from_arrays({"a": {"x": np.array([3, 200, 7, 9], np.uint8)}})
    (window,) = ss.StreamDataset(store, lanes=1, window=4, lookahead={"target": ("x", 1)})
    logits = torch.randn(1, 4, 256)
    expected = [-torch.log_softmax(logits[0, t], 0)[byte] for t, byte in enumerate([200, 7, 9, 0])]
    torch.testing.assert_close(next_byte_loss(logits, window), torch.stack(expected)[None])


def test_dropout_acts_in_training_only():
    model = ByteLanguageModel(hidden=8, embedding=4, dropout=0.5)
    x = torch.randint(0, 256, (2, 6))
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_a_sample_follows_from_prompt_and_seed_and_leaves_the_generators_alone():
    torch.manual_seed(0)
    model = ByteLanguageModel(hidden=8, embedding=4, dropout=0.5).train()
    before = torch.get_rng_state()
    written = model.sample(b"def ", 30, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert len(written) == 30
    assert model.sample(b"def ", 30, seed=1) == written
    assert model.sample(b"def ", 30, seed=2) != written


def test_a_sample_is_drawn_from_what_the_model_says_of_all_bytes_before():
    torch.manual_seed(0)
    model = ByteLanguageModel(hidden=8, embedding=4)
    with torch.no_grad():
        model.head.weight.mul_(20)  # so that what comes depends on the state
    written = model.sample(b"ab", 20, temperature=1e-4)
    logits, _ = model(torch.tensor([list(b"ab" + written)]))
    assert list(written) == logits[0, 1:-1].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "a cell is one of lstm, gru, got 'rnn'"),
        ({"hidden": 0}, "hidden is at least 1, got 0"),
        ({"dropout": 1.0}, "dropout is a probability"),
    ],
)
def test_wrong_settings_of_a_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ByteLanguageModel(**options)


@pytest.mark.parametrize("wrong", [(b"", 3, 1.0), (b"a", -1, 1.0), (b"a", 3, 0.0)])
def test_wrong_arguments_of_a_sample_are_refused(wrong):
    prompt, length, temperature = wrong
    with pytest.raises(ValueError, match="a prompt of at least one byte"):
        ByteLanguageModel(hidden=4).sample(prompt, length, temperature=temperature)


def test_the_gru_and_the_lstm_are_those_of_torch():
    assert isinstance(ByteLanguageModel(cell="gru", hidden=4).rnn, nn.GRU)
    assert isinstance(ByteLanguageModel(cell="lstm", hidden=4).rnn, nn.LSTM)
