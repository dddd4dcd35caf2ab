"""The plain loop under Accelerate is the plain loop, in one process and in two, and resumes."""

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

import streamseq as ss
from streamseq.integrations.accelerate import make_tbptt, rank_options, register

from . import loops


@pytest.fixture(autouse=True)
def fresh():
    # What one Accelerator sets up is shared by all of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """A loop as in the guide."""

    def __init__(self, folder, dropout=0.3, mixed_precision="no"):
        self.accelerator = accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
        self.folder = folder
        self.windows = []
        source = loops.stream(**rank_options(accelerator))
        self.network = loops.Network(dropout)
        loader = loops.Seen(source, self.windows)
        self.model, self.optimizer, self.loader = accelerator.prepare(self.network, loops.adam(self.network), loader)
        assert self.loader is loader
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer.optimizer, 0.99)
        self.tbptt = make_tbptt(accelerator, self.model, loops.loss, k1=4, k2=8)
        register(accelerator, loader, self.tbptt, self.scheduler)

    def train(self, epochs=2, stop=None):
        while self.loader.stream.epoch < epochs:
            for update in self.tbptt.updates(self.loader):
                self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                if update.token.step + 1 == stop:
                    self.accelerator.save_state(self.folder)
                    return
            self.loader.set_epoch(self.loader.stream.epoch + 1)


def test_training_is_the_plain_loop_bit_for_bit(tmp_path):
    run = Run(tmp_path)
    torch.manual_seed(11)
    run.train()
    parameters, _, windows = loops.plain(2)
    assert run.windows == windows
    loops.assert_same_parameters(run.network, parameters)


def test_a_run_that_was_stopped_within_an_epoch_and_resumed_is_one_that_was_not(tmp_path):
    first = Run(tmp_path)
    torch.manual_seed(11)
    first.train(stop=5)
    torch.manual_seed(5)
    second = Run(tmp_path)
    second.accelerator.load_state(tmp_path)
    second.train()
    parameters, _, windows = loops.plain(2)
    assert first.windows + second.windows == windows
    loops.assert_same_parameters(second.network, parameters)


def test_bfloat16_is_the_accelerator_s(tmp_path):
    run = Run(tmp_path, dropout=0.0, mixed_precision="bf16")
    run.train(epochs=1)
    (wanted, _, _), found = loops.plain(1, dropout=0.0), dict(run.network.named_parameters())
    assert not any(torch.equal(found[name], wanted[name]) for name in found)
    assert all(torch.allclose(found[name], wanted[name], atol=0.05) for name in found)


def in_one_of_two(folder):
    run = Run(folder, dropout=0.0)
    run.train(epochs=1, stop=5)
    rank = run.accelerator.process_index
    torch.save({"windows": run.windows, "parameters": run.network.state_dict()}, folder / f"rank{rank}.pt")


def test_two_processes_have_the_lanes_of_one_and_one_goes_on_from_two(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    debug_launcher(in_one_of_two, (tmp_path,), num_processes=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    parameters, _, windows = loops.plain(2, dropout=0.0)
    together = [
        (*one[:2], one[2] + other[2], one[3] + other[3])
        for one, other in zip(first["windows"], second["windows"], strict=True)
    ]
    assert together == [window[:4] for window in windows[:5]]
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = Run(tmp_path, dropout=0.0)
    resumed.accelerator.load_state(tmp_path)
    resumed.train()
    assert resumed.windows == windows[5:]
    for name, wanted in parameters.items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        # Sums over lanes are added up in another order.
        assert torch.allclose(resumed.network.state_dict()[name], wanted, atol=1e-5)


def test_an_accelerator_that_accumulates_is_an_error():
    with pytest.raises(ValueError, match="got gradient_accumulation_steps=2: pass accumulate=2 instead"):
        make_tbptt(Accelerator(cpu=True, gradient_accumulation_steps=2), loops.Network(), loops.loss, k1=4, k2=4)


def test_its_scaler_is_the_engine_s():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model = loops.Network(dropout=0.0)
    tbptt = make_tbptt(accelerator, model, loops.loss, k1=4, k2=8)
    next(tbptt.updates(loops.stream()))
    scaled = [parameter.grad / 8 for parameter in model.parameters()]
    model.zero_grad()
    next(ss.TBPTT(model, loops.loss, k1=4, k2=8).updates(loops.stream()))
    assert all(torch.equal(a, parameter.grad) for a, parameter in zip(scaled, model.parameters(), strict=True))
