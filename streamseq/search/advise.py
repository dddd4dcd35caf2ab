"""`advise`: which k1, k2, lanes and layout to begin with, from the data and a probe, in a bounded time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from streamseq.core.sizes import parse_bytes
from streamseq.search.advice import Advice
from streamseq.search.dependence import Dependence, measure_dependence
from streamseq.search.probe_training import train_probe
from streamseq.search.probed import Probed
from streamseq.search.propose import (
    FAIR,
    GOOD,
    WEAK,
    Depth,
    Proposal,
    find_depth,
    fit_k,
    propose_k,
    propose_lanes,
    propose_split,
)
from streamseq.search.sample import Sample, draw_sample
from streamseq.storage.interface import Store
from streamseq.storage.store import open as open_store
from streamseq.tbptt.memory import Memory
from streamseq.training.bias_curve import draw_bias, new_figure
from streamseq.training.bias_report import LANE_AXIS, Comparison
from streamseq.training.choose_task import find_task
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import Task
from streamseq.training.threads import thread_count

if TYPE_CHECKING:
    from streamseq.tbptt.model import Inputs

USUAL_SECONDS = 60.0
USUAL_UPDATES = 1000
# Of the seconds, for the probe training; the rest is for reading, dependences and the bias.
_TRAINING = 0.5
# Of the probe model, which is small: it has little time.
_HIDDEN, _EMBEDDING = 64, 32
# With which it is trained: no larger, for what is far away is not learnt in so short a time.
_SHORTEST, _LONGEST = 16, 128
# Fields of numbers that are looked at for dependence.
_FIELDS = 8
PICTURES = ("dependence.png", "bias.png")
_BLIND = (
    "dependence is of pairs of timesteps: what three or more tell only together is not in it, and the probe finds it "
    "only if it learns it; a search tells"
)


def advise(
    store: Store | str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    loss: Callable[..., Any] | None = None,
    inputs: Inputs | None = None,
    stream: Mapping[str, Any] | None = None,
    lane_axis: Any = None,
    settings: TrainingSettings | None = None,
    k1: int | None = None,
    bias: float = 0.1,
    memory: int | str | None = None,
    seconds: float = USUAL_SECONDS,
    updates: int = USUAL_UPDATES,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Advice:
    """Propose k1, k2, segment, lanes, layout and split for a store, each with a reason and how sure it is.

    A bounded sample of the store is read. How far back the data depends is measured on it, without a model; a small
    reference model is trained on it for a short time, and what truncations would lose of its gradient is measured, the
    bias report. k2 is as large as the larger of the two asks for: so short a training may not have learnt what lies
    far back, and one that has learnt nothing of the past does not count. The same is done with a model of yours, which
    is not trained.

    Args:
        store: A store, or where one lies.
        model: A model of yours in place of the reference model, as for `TBPTT`, in the mode that is to be measured.
        loss: Its loss, as for `TBPTT`.
        inputs: What it gets, as for `TBPTT`; None: "x".
        stream: Options of the `StreamDataset` that it reads, such as `lookahead`.
        lane_axis: See `streamseq.Carry`.
        settings: Of the reference trainer, for what is learnt, its model and its seed; None: the defaults.
        k1: Timesteps between updates, where that is not to be chosen.
        bias: The relative bias of the gradient that is tolerated.
        memory: A budget for an update, in bytes or as text such as "500MB", which chooses the segment.
        seconds: How long it may take, about.
        updates: How many updates the probe training makes at most.
        out: A folder for `advice.json` and the pictures; None: nothing is written.
        progress: Called with what is done next.

    Raises:
        ImportError: `out` is given and matplotlib is not installed.
        ValueError: A number is out of its range, no sequence has two timesteps, there is nothing to learn, or `memory`
            is too little.
        StoreError: There is no such store.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> noise = np.random.default_rng(0).integers(0, 8, (4, 2000), dtype=np.uint8)
        >>> store = ss.from_arrays({f"{i}": {"x": row} for i, row in enumerate(noise)})
        >>> advice = ss.advise(store, updates=5)
        >>> advice.k1, advice.k2, advice["layout"].value
        (8, 8, 'even')
    """
    figures = [] if out is None else [new_figure(), new_figure()]
    _check(model, loss, k1, bias, seconds, updates)
    budget = None if memory is None else parse_bytes(memory)
    began = time.monotonic()
    say = progress or (lambda text: None)
    # As it was named, so that the commands can be copied.
    named = store.uri if isinstance(store, Store) else os.fspath(store)
    if not isinstance(store, Store):
        store = open_store(store)
    settings = settings or TrainingSettings()
    given = stream or {}
    say(f"reading a sample of {store.uri}")
    task = None if model is not None else find_task(store, settings)
    sample = draw_sample(store, _fields(store, task, given))
    say("measuring how far back the data depends")
    dependences = _dependences(sample, store, task, inputs)
    longest = int(store.lengths.max())
    notes = []
    if model is not None:
        assert loss is not None
        probed = Probed(
            model=model,
            loss=loss,
            inputs="x" if inputs is None else inputs,
            options=dict(given),
            lane_axis=lane_axis,
            training=None,
        )
    else:
        assert task is not None
        depth = find_depth(dependences, None, None, bias=bias).timesteps
        short = replace(settings, hidden=_HIDDEN, embedding=_EMBEDDING, layers=1, dropout=0.0, device="cpu")
        near = min(_LONGEST, max(_SHORTEST, fit_k(depth, longest)[0]))
        far = max(near, min(2 * _LONGEST, depth + near - 1))
        limit = max(0.1, _TRAINING * seconds - (time.monotonic() - began))
        say(f"training a probe for at most {limit:.0f} s")
        with thread_count(settings.threads or 1):
            trained, training = train_probe(
                sample, task, replace(short, k1=near, k2=far), updates=updates, seconds=limit
            )
        probed = Probed(
            model=trained,
            loss=task.loss,
            inputs=task.inputs,
            options=task.stream_options(),
            lane_axis=LANE_AXIS,
            training=training,
        )
        if not training.learnt:
            notes.append(
                "what truncations lose is of a probe that has learnt nothing of the past: more seconds may help it"
            )
    say("measuring what truncations lose of the gradient")
    data = find_depth(dependences, None, None, bias=bias).timesteps
    influence = probed.influence(sample, 4 * fit_k(data, longest, k1)[1], bias)
    if influence is None:
        notes.append("the sequences are too short to measure what truncations lose")
    found = find_depth(dependences, influence, probed.training, bias=bias)
    first, second = fit_k(found.timesteps, longest, k1)
    truncations = [] if influence is None else probed.compare(sample, first, second, influence)
    counts = probed.training is None or probed.training.learnt
    first, second, found = _raised(found, first, second, truncations, bias) if counts else (first, second, found)
    lanes = propose_lanes(store, first)
    layout = str(lanes[1].value)
    with thread_count(settings.threads or 1), torch.random.fork_rng(devices=[]):
        usual = model if model is not None else task.build(settings) if task is not None else probed.model
        need = replace(probed, model=usual).memory(sample, first, second, int(lanes[0].value or 1), layout, budget)
    notes.append(_BLIND)
    proposals = [
        *propose_k(first, second, found, given=k1 is not None),
        _segment(need, budget),
        *lanes,
        propose_split(store),
    ]
    same = {name: getattr(settings, name) for name in _changed(settings)}
    if memory is not None:
        same["memory"] = memory
    advice = Advice(
        store=named,
        fingerprint=store.fingerprint,
        proposals=tuple(proposals),
        timesteps=sample.store.num_timesteps,
        whole=sample.whole,
        dependences=tuple(dependences),
        probe=probed.training,
        influence=influence,
        truncations=tuple(truncations),
        memory=need,
        notes=tuple(notes),
        same=same,
        seconds=time.monotonic() - began,
    )
    if out is None:
        return advice
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    from streamseq.search.advice_picture import draw_dependence

    if dependences:
        draw_dependence(figures[0], folder / PICTURES[0], dependences, second - first + 1)
        drawn.append(str(folder / PICTURES[0]))
    if influence is not None:
        depths, measured = [each.depth for each in truncations], [each.relative for each in truncations]
        draw_bias(figures[1], folder / PICTURES[1], influence, wish=bias, depths=depths, measured=measured)
        drawn.append(str(folder / PICTURES[1]))
    advice = replace(advice, plots=tuple(drawn))
    advice.save(folder)
    return advice


def _check(model: nn.Module | None, loss: object, k1: int | None, bias: float, seconds: float, updates: int) -> None:
    if (model is None) != (loss is None):
        raise ValueError("a model comes with its loss: give both, or neither for the reference model")
    if k1 is not None and k1 < 1:
        raise ValueError(f"k1 is at least 1, got {k1}")
    if not 0 < bias < float("inf"):
        raise ValueError(f"the bias that is tolerated is a finite number above 0, got {bias}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds is a finite number above 0, got {seconds}")
    if updates < 1:
        raise ValueError(f"updates is at least 1, got {updates}")


def _fields(store: Store, task: Task | None, stream: Mapping[str, Any]) -> list[str]:
    """The fields that are read."""
    options = stream if task is None else task.stream_options()
    names = list(store.fields) if options.get("fields") is None else list(options["fields"])
    return list(dict.fromkeys([*names, *(field for field, _ in (options.get("lookahead") or {}).values())]))


def _dependences(sample: Sample, store: Store, task: Task | None, inputs: Any) -> list[Dependence]:
    """Of the fields that a model gets, each by itself."""
    wanted = task.inputs if task is not None else "x" if inputs is None else inputs
    names = [wanted] if isinstance(wanted, str) else list(sample.store.fields) if callable(wanted) else list(wanted)
    known = [name for name in names if name in store.fields and store.fields[name].dtype.kind in "iubf"]
    return [measure_dependence(sample.store, name) for name in known[:_FIELDS]]


def _raised(depth: Depth, k1: int, k2: int, truncations: list[Comparison], bias: float) -> tuple[int, int, Depth]:
    """A larger k2 where what was measured asks for it."""
    at = next((each for each in truncations if each.k2 == k2), None)
    if at is None:
        return k1, k2, depth
    if at.relative < bias:
        return k1, k2, replace(depth, why=f"{depth.why}; measured, {100 * at.relative:.2g} % of the gradient is lost")
    enough = next((each for each in truncations if each.k2 > k2 and each.relative < bias), None)
    if enough is None:
        told = f"{depth.why}; measured, {100 * at.relative:.2g} % of the gradient is lost, and no larger k2 was enough"
        return k1, k2, replace(depth, why=told, sure=WEAK)
    lost = f"k2 = {k2:,} loses {100 * at.relative:.2g} % of the gradient, this {100 * enough.relative:.2g} %"
    told = f"{depth.why}; measured, {lost}"
    return k1, enough.k2, replace(depth, why=told, sure=FAIR)


def _segment(need: Memory, budget: int | None) -> Proposal:
    if budget is None:
        why = f"as ss.TBPTT has it, {need.segment:,} timesteps: no memory budget was given"
        return Proposal(name="segment", value=None, why=why, sure=GOOD)
    why = "the largest that keeps an update within the budget, as predicted from calls of the model"
    return Proposal(name="segment", value=need.segment, why=why, sure=GOOD)


def _changed(settings: TrainingSettings) -> list[str]:
    usual = TrainingSettings()
    own = {"k1", "k2", "lanes", "layout", "segment", "memory", "split"}
    return [
        name
        for name in usual.__dataclass_fields__
        if name not in own and getattr(settings, name) != getattr(usual, name)
    ]
