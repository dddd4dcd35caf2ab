"""Lightning trains by TBPTT on a stream, and resumes, as the plain loop does."""

import logging

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import streamseq as ss
from streamseq.integrations.lightning import StreamDataModule, TBPTTModule
from streamseq.training import evaluate

from . import loops

for _package in ("lightning", "pytorch_lightning"):
    logging.getLogger(_package).setLevel(logging.WARNING)


class Parts:
    """What a module has of its own."""

    def __init__(self, dropout=0.3, **options):
        super().__init__(**{"k1": 4, "k2": 8, "clip_norm": 0.5, **options})
        self.network = loops.Network(dropout)
        self.windows, self.losses = [], []

    def forward(self, x, state):
        return self.network(x, state)

    def loss(self, outputs, window):
        return loops.loss(outputs, window)

    def configure_optimizers(self):
        optimizer = loops.adam(self.network)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)]

    def on_train_start(self):
        if not self.trainer.global_step:
            torch.manual_seed(11)

    def training_step(self, batch, batch_idx):
        if not isinstance(batch, str):
            self.windows.append(loops.position(batch))
        super().training_step(batch, batch_idx)


class Module(Parts, TBPTTModule):
    pass


class Stop(Callback):
    """Ends a run after a batch, as a kill would, with a checkpoint before."""

    def __init__(self, after, path):
        self.after, self.path = after, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(module.windows) == self.after:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def trainer(tmp_path, kind=pl.Trainer, **options):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return kind(**{**defaults, **options})


def data(**options):
    return StreamDataModule(train=loops.stream(), val=loops.stream("val"), **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"k1": 2, "k2": 5}, {"k1": 8, "k2": 12}, {"k1": 4, "k2": 4, "accumulate": 3}, {"k1": 4, "k2": None}],
    ids=str,
)
def test_training_is_the_plain_loop_bit_for_bit(tmp_path, options):
    module = Module(**options)
    fitted = trainer(tmp_path)
    fitted.fit(module, data())
    parameters, losses, windows = loops.plain(2, **options)
    assert module.windows == windows
    assert fitted.global_step == len(losses)
    loops.assert_same_parameters(module.network, parameters)
    assert not list(tmp_path.iterdir())


# 17 windows an epoch: the last ones of the first epoch, and in the middle of both.
@pytest.mark.parametrize("options", [{}, {"k1": 8, "k2": 12}], ids=str)
@pytest.mark.parametrize("after", [5, 20])
def test_a_run_that_was_stopped_within_an_epoch_and_resumed_is_one_that_was_not(tmp_path, options, after):
    path = tmp_path / "stopped.ckpt"
    module = Module(**options)
    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[Stop(after, path)]).fit(module, data())
    seen = module.windows
    assert len(seen) == after
    torch.manual_seed(5)
    module = Module(**options)
    trainer(tmp_path).fit(module, data(), ckpt_path=path)
    parameters, _, windows = loops.plain(2, **options)
    assert seen + module.windows == windows
    loops.assert_same_parameters(module.network, parameters)


def test_a_checkpoint_is_loaded_with_weights_only(tmp_path):
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Module(), data())
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert saved["streamseq"]["updates"]["first"] is None
    trainer(tmp_path).fit(module := Module(), data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert {window[0] for window in module.windows} == {1}


@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")  # of the callback, on purpose
def test_checkpoints_of_a_callback_at_ends_of_epochs_resume_with_the_next_epoch(tmp_path):
    module = Module()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fitted = trainer(tmp_path, callbacks=[saver], enable_checkpointing=True)
    fitted.fit(module, data())
    resumed = Module()
    again = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path / "again")], enable_checkpointing=True)
    again.fit(resumed, data(), ckpt_path=tmp_path / "epoch=0.ckpt")
    loops.assert_same_parameters(resumed, dict(module.named_parameters()))
    assert resumed.windows == [window for window in module.windows if window[0] == 1]


def test_validation_streams_with_a_state_of_its_own(tmp_path):
    module = Module()
    fitted = trainer(tmp_path, val_check_interval=3)
    fitted.fit(module, data())
    network = module.network.eval()
    assert float(fitted.callback_metrics["val_loss"]) == pytest.approx(
        evaluate(network, loops.loss, loops.stream("val")).loss, rel=1e-6
    )
    # And training is not touched by it.
    loops.assert_same_parameters(network, loops.plain(2)[0])
    found = fitted.validate(module, data(), verbose=False)[0]["val_loss"]
    assert found == float(fitted.callback_metrics["val_loss"])


def test_the_logged_loss_is_the_mean_over_timesteps(tmp_path):
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Module(k1=8, k2=8), data())
    model, source = loops.Network(), loops.stream()
    optimizer, tbptt = loops.adam(model), ss.TBPTT(model, loops.loss, k1=8, k2=8)
    torch.manual_seed(11)
    total = count = 0
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for update in tbptt.updates(source):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += float(update.loss) * update.num_timesteps
        count += update.num_timesteps
    assert float(fitted.callback_metrics["train_loss_epoch"]) == pytest.approx(total / count, rel=1e-6)
    assert float(fitted.callback_metrics["train_loss_step"]) == pytest.approx(float(update.loss), rel=1e-6)


def test_testing_and_prediction_stream_too(tmp_path):
    module, source = Module(), loops.stream("val")
    both = StreamDataModule(test=source, predict=source)
    fitted = trainer(tmp_path)
    wanted = evaluate(module.network, loops.loss, source).loss
    assert fitted.test(module, both, verbose=False) == [{"test_loss": pytest.approx(wanted, rel=1e-6)}]
    parts = [part for window in fitted.predict(module, both) for part in window]
    assert sum(int(part.mask.sum()) for part, _ in parts) == sum(loops.LENGTHS["val"])
    assert [outputs.shape for _, outputs in parts] == [part.mask.shape for part, _ in parts]


def test_bfloat16_is_that_of_the_engine(tmp_path):
    module = Module()
    trainer(tmp_path, precision="bf16-mixed", max_epochs=1).fit(module, data())
    parameters, _, _ = loops.plain(1, autocast=torch.bfloat16)
    loops.assert_same_parameters(module.network, parameters)


def test_a_budget_chooses_the_segment_once(tmp_path):
    module = Module(k1=4, k2=None, memory="50kB", dropout=0.0)
    fitted = trainer(tmp_path, max_steps=5)
    fitted.fit(module, StreamDataModule(train=loops.stream()))
    wanted = ss.TBPTT(loops.Network(0.0), loops.loss, k1=4, k2=None, memory="50kB").memory(loops.stream()).segment
    assert module._updates.tbptt.segment == wanted


def test_stores_are_streamed_with_the_options(tmp_path):
    module = Module()
    stores = StreamDataModule(train=loops.store(), val=loops.store("val"), lanes=3, window=4, shuffle=True)
    trainer(tmp_path).fit(module, stores)
    assert module.windows == loops.plain(2)[2]


def test_limited_epochs_end_with_a_ragged_update(tmp_path):
    module = Module(k1=8, k2=8)
    fitted = trainer(tmp_path, limit_train_batches=3)
    fitted.fit(module, data())
    assert [window[1] for window in module.windows] == [0, 1, 2] * 2
    assert fitted.global_step == 4


def test_training_without_validation_and_stopping_at_a_number_of_updates(tmp_path):
    module = Module(k1=2, k2=2)
    fitted = trainer(tmp_path, max_steps=6)
    fitted.fit(module, StreamDataModule(train=loops.stream()))
    assert fitted.global_step == 6
    assert [window[1] for window in module.windows] == [0, 1, 2]


class InTwo(Module):
    """Writes down what each process saw."""

    def __init__(self, folder):
        super().__init__(dropout=0.0)
        self.folder = folder

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.windows) == 5:
            self.trainer.save_checkpoint(self.folder / "five.ckpt")

    def on_train_end(self):
        found = {"windows": self.windows, "parameters": self.network.state_dict()}
        torch.save(found, self.folder / f"rank{self.trainer.global_rank}.pt")


def test_two_processes_have_the_lanes_of_one_and_one_goes_on_from_two(tmp_path):
    both = StreamDataModule(train=loops.store(), val=loops.store("val"), lanes=3, window=4, shuffle=True)
    trainer(tmp_path, devices=2, strategy="ddp_fork").fit(InTwo(tmp_path), both)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    parameters, _, windows = loops.plain(2, dropout=0.0)
    together = [
        (*one[:2], one[2] + other[2], one[3] + other[3])
        for one, other in zip(first["windows"], second["windows"], strict=True)
    ]
    assert together == [window[:4] for window in windows]
    resumed = Module(dropout=0.0)
    trainer(tmp_path).fit(resumed, data(), ckpt_path=tmp_path / "five.ckpt")
    assert resumed.windows == windows[5:]
    for name, wanted in parameters.items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        # Sums over lanes are added up in another order.
        assert torch.allclose(first["parameters"][name], wanted, atol=1e-5)
        assert torch.allclose(resumed.network.state_dict()[name], wanted, atol=1e-5)


def test_the_older_package_is_served_too(tmp_path):
    import pytorch_lightning

    from streamseq.integrations import pytorch_lightning as older

    class Older(Parts, older.TBPTTModule):
        pass

    fitted = trainer(tmp_path, kind=pytorch_lightning.Trainer)
    fitted.fit(module := Older(), older.StreamDataModule(train=loops.stream(), val=loops.stream("val")))
    loops.assert_same_parameters(module.network, loops.plain(2)[0])


def test_options_without_a_store_are_an_error():
    with pytest.raises(TypeError, match="lanes are options of streams of stores, and none is given"):
        StreamDataModule(train=loops.stream(), lanes=3)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="schedule is one of update, epoch, got 'step'"):
        Module(schedule="step")


def test_two_optimizers_are_an_error(tmp_path):
    class Two(Module):
        def configure_optimizers(self):
            return [loops.adam(self.network), loops.adam(self.network)]

    with pytest.raises(TypeError, match="one step of one optimizer, got 2"):
        trainer(tmp_path).fit(Two(), data())


def test_batches_that_are_no_windows_are_an_error(tmp_path):
    with pytest.raises(TypeError, match="on the windows of a stream, got a list"):
        trainer(tmp_path).fit(Module(), ["x"], ss.StreamLoader(loops.stream("val")))
