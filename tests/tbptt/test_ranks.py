"""Several processes: the gradients, losses and counts of one process, one reduction an update, no hang."""

import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.models import make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import streamseq as ss

# Of the last lane all but the first window is idle: a rank without valid timesteps takes part in most updates.
LENGTHS = [50, 41, 37, 4]


def stream_of(rank=0, world_size=1, **options):
    options = {"lanes": 4, "window": 4, **options}
    return make_stream(options.pop("lengths", LENGTHS), rank=rank, world_size=world_size, **options)


CASES = {
    "k, k": ({"k1": 4, "k2": 4}, {}),
    "k, 2k": ({"k1": 4, "k2": 8}, {}),
    "several a window": ({"k1": 2, "k2": 7}, {}),
    "several windows": ({"k1": 8, "k2": 12}, {}),
    "in segments": ({"k1": 4, "k2": 16, "segment": 5}, {}),
    "k, n": ({"k1": 4, "k2": None}, {}),
    "n, n": ({"k1": None, "k2": None, "segment": 8}, {"lengths": [24, 23, 24, 22, 8, 7, 6, 3]}),
    "window losses": ({"k1": 4, "k2": 8, "losses": "window"}, {}),
    "window losses to n": ({"k1": 4, "k2": None, "losses": "window"}, {}),
    "accumulated": ({"k1": 4, "k2": 8, "accumulate": 3}, {}),
    "packed": ({"k1": 4, "k2": 8}, {"tail": "pack", "lengths": [30, 9, 17, 22, 5, 14]}),
    "random": ({"k1": 4, "k2": None, "truncation": ss.truncation.Random(9)}, {}),
    "adaptive": ({"k1": 4, "k2": 16, "truncation": ss.truncation.Adaptive(0.5, probe=24)}, {}),
}
WRAPPED = {"k, 2k", "in segments", "n, n"}


def run(rank, world_size, folder, name, wrapped):
    options, data = CASES[name]
    model = make("learned")
    trained = DistributedDataParallel(model) if wrapped else model
    return engine_updates(trained, stream_of(rank, world_size, **data), **options)


def work(rank, world_size, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    results = {}
    for name in CASES:
        for wrapped in (False, True) if name in WRAPPED else (False,):
            try:
                results[name, wrapped] = run(rank, world_size, folder, name, wrapped)
            except Exception:
                results[name, wrapped] = traceback.format_exc()
                torch.save(results, f"{folder}/{rank}.pt")
                raise
    # One reduction of gradients an update, whatever the segments.
    reduced = []
    reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, *args, **kwargs: (reduced.append(tensor.numel()), reduce(tensor, *args, **kwargs))[
        1
    ]
    updates = engine_updates(make("gru"), stream_of(rank, world_size), 4, 16, segment=2)
    size = sum(parameter.numel() for parameter in make("gru").parameters())
    results["reductions"] = reduced.count(size), len(updates)
    dist.all_reduce = reduce
    # Windows one by one, of a wrapped model, and of one whose group is named.
    for name, model, group in (
        ("wrapped", DistributedDataParallel(make("gru")), None),
        ("named", make("gru"), dist.group.WORLD),
    ):
        tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8, process_group=group)
        updates = filter(None, map(tbptt.backward, stream_of(rank, world_size)))
        results["one by one", name] = collect(model, updates)
    # On request the ranks go their own ways.
    results["alone"] = engine_updates(make("gru"), stream_of(rank, world_size), 4, 8, process_group=False)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    ("name", "wrapped"), [(name, False) for name in CASES] + [(name, True) for name in sorted(WRAPPED)]
)
def test_two_processes_have_the_gradients_of_one(results, name, wrapped):
    options, data = CASES[name]
    wanted = engine_updates(make("learned"), stream_of(**data), **options)
    for rank in range(2):
        assert_same(results[rank][name, wrapped], wanted, 1e-9)


@pytest.mark.parametrize("name", ["wrapped", "named"])
def test_windows_one_by_one_are_added_up_too(results, name):
    wanted = engine_updates(make("gru"), stream_of(), 4, 8)
    for rank in range(2):
        assert_same(results[rank]["one by one", name], wanted, 1e-9)


def test_gradients_are_reduced_once_an_update(results):
    for rank in range(2):
        reductions, updates = results[rank]["reductions"]
        assert reductions == updates > 0


def test_ranks_may_train_alone(results):
    for rank in range(2):
        # Without a process group a rank's stream is trained on alone too.
        assert_same(results[rank]["alone"], engine_updates(make("gru"), stream_of(rank, 2), 4, 8), 0)


def test_sharded_parameters_are_refused():
    class FSDPModule(nn.Module):
        def forward(self, x, state):
            return x, state

    with pytest.raises(TypeError, match="DistributedDataParallel"):
        ss.TBPTT(FSDPModule(), squared_error, k1=4, k2=4)


def test_gradients_of_several_updates_need_to_know_the_parameters():
    model = make("gru")
    tbptt = ss.TBPTT(lambda x, s: model(x, s), squared_error, k1=4, k2=4, accumulate=2)
    with pytest.raises(ValueError, match="pass parameters="):
        next(tbptt.updates(stream_of()))


@pytest.mark.parametrize("accumulate", [1, 2, 3, 100])
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 12), (2, 5), (8, 8)])
def test_accumulated_updates_are_one_mean(k1, k2, accumulate):
    model = make("lstm")
    single = engine_updates(model, stream_of(), k1, k2)
    got = engine_updates(model, stream_of(), k1, k2, accumulate=accumulate)
    wanted = []
    for first in range(0, len(single), accumulate):
        part = single[first : first + accumulate]
        count = sum(number for _, number, _ in part)
        loss = sum(number * value for value, number, _ in part) / count
        grads = [sum(number * each[i] for _, number, each in part) / count for i in range(len(part[0][2]))]
        wanted.append((loss, count, grads))
    assert_same(got, wanted, 1e-12)


def test_accumulated_gradients_are_added_to_those_that_are_there():
    model = make("gru")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    functional = [*model.parameters()]
    tbptt = ss.TBPTT(lambda x, s: model(x, s), squared_error, k1=4, k2=8, accumulate=4, parameters=functional)
    next(tbptt.updates(stream_of()))
    (_, _, grads), *_ = engine_updates(make("gru"), stream_of(), 4, 8, accumulate=4)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad + 3, rtol=0, atol=1e-12)


def test_an_accumulated_update_ends_a_window_only_where_it_is_whole():
    tbptt = ss.TBPTT(make("gru"), squared_error, k1=2, k2=4, accumulate=3)
    ends = [(update.token.step, update.at_window_end) for update in tbptt.updates(stream_of(lengths=[20], lanes=1))]
    # Two updates a window: of three together every other one ends in the middle of a window.
    assert ends == [(1, False), (2, True), (4, False), (4, True)]
    with pytest.raises(ValueError, match="accumulate=3"):
        tbptt.backward(stream_of()[0])


def test_counts_are_exact_with_a_scaled_loss_of_large_numbers():
    """The sum is divided by what is known first, and put right in the end."""
    stream = stream_of()
    for window in (windows := list(stream)):
        window.mask[:, 1:] = torch.from_numpy(np.random.default_rng(window.token.step).random((4, 3)) < 0.3)
    model = make("gru")
    single = engine_updates(model, windows, 4, 8)
    (got, *_) = engine_updates(model, windows, 4, 8, accumulate=len(single))
    count = sum(number for _, number, _ in single)
    assert got[1] == count
    assert got[0] == pytest.approx(sum(n * loss for loss, n, _ in single) / count)
