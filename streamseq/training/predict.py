"""Streaming inference: a model over a whole store, its outputs per timestep in a new store, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streamseq.core.errors import ResumeError, StoreError, VersionConflictError
from streamseq.core.fields import Field
from streamseq.core.settings import at_least
from streamseq.data.normalization import find_scales
from streamseq.etl.report import readable_bytes
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.interface import Store
from streamseq.storage.layout import ShardLayout, plan_layout
from streamseq.storage.places.location import local_path
from streamseq.storage.shards.shard_writer import Receipt
from streamseq.storage.store import create
from streamseq.storage.store import open as open_store
from streamseq.storage.versions.receipts import commit_receipts
from streamseq.tbptt.model import Inputs
from streamseq.training.predict_job import Job
from streamseq.training.predict_plan import plan_tasks
from streamseq.training.predict_run import run_tasks
from streamseq.training.predict_settings import difference, settings_of
from streamseq.training.predict_task import Outputs, Recipe, probe_fields
from streamseq.training.predict_writer import written_order
from streamseq.training.threads import thread_count

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictReport:
    """What a prediction did; `print(report)` says it in a few lines.

    Args:
        store: The path of the new store.
        version: The version that was committed.
        fields: Its fields, as text: dtype and step shape by name.
        sequences, timesteps: In it.
        tasks: How many the work was cut into.
        tasks_before: How many of them were finished by earlier runs, which were stopped.
        bytes_out: Bytes of the shards' data on the disk.
        seconds: Wall-clock time of the run that finished it.
        finished_before: Whether nothing was computed, for the store was there already, made with the same arguments.
    """

    store: str
    version: int
    fields: dict[str, str]
    sequences: int
    timesteps: int
    tasks: int
    tasks_before: int
    bytes_out: int
    seconds: float
    finished_before: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        fields = ", ".join(f"{name} {what}" for name, what in self.fields.items())
        first = (
            f"{'finished already: ' if self.finished_before else 'wrote '}{self.store} version {self.version}: "
            f"{fields} of {self.sequences:,} sequences, {self.timesteps:,} timesteps"
        )
        if self.finished_before:
            return first
        before = f", {self.tasks_before:,} of {self.tasks:,} tasks were done before" if self.tasks_before else ""
        return f"{first}\n{readable_bytes(self.bytes_out)} out, in {self.seconds:.1f} s{before}"


def predict(
    model: nn.Module,
    store: Store | str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    outputs: Outputs | None = None,
    inputs: Inputs = "x",
    lookahead: Mapping[str, tuple[str, int]] | None = None,
    normalize: object = None,
    lanes: int = 32,
    window: int = 256,
    sequences: Iterable[str] | None = None,
    workers: int = 0,
    threads: int | None = None,
    backend: str | None = None,
    chunk_bytes: int | None = None,
    shard_bytes: int | None = None,
    lane_axis: Any = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PredictReport:
    """Run a model over a store with carried state, and write what it puts out at each timestep to a new store.

    Every sequence starts from the initial state and is gone through to its end; the result is that of running the model
    over each sequence alone. The new store has the same ids in the same order, the same lengths and attributes;
    its timestep t holds what the model put out at timestep t.

    The work is cut into tasks of some sequences each, about a shard of outputs and at least one sequence a lane. A
    prediction that was killed or failed goes on with the same arguments, and only the tasks that ran are computed
    again. Nothing is visible before all of it is committed, as version 1.

    Memory is what a `StreamLoader` takes, a window of outputs, for each lane a chunk of every new field, and a shard:
    it does not grow with the sequences. The ids of all sequences are held too. On disk, running tasks hold back less
    than a shard of each of their sequences.

    The model is in eval mode and without gradients meanwhile; its modes, its buffers and the random generators are
    afterwards as they were. Noise that it draws in eval mode is seeded by the task.

    Args:
        model: `model(inputs, state) -> (outputs, state)` as for `TBPTT`: state None is zeros, or what its
            `initial_state(B)` returns.
        store: A store, or where one lies; of that the newest version, on resume the one that was begun with.
        uri: Where to put the new store: a local path or `file://` URL.
        outputs: Makes fields of what the model puts out: `(outputs, window) -> dict` of tensors [B, K, *D], such as a
            narrower dtype, an argmax or a loss. None: a tensor [B, K, *D] is the field "y", a dict of them is fields by
            name. Dtype and step shape are found from the first window. bfloat16 is stored as float32, which has all
            of its values.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        lookahead: Of the windows, as for `StreamDataset`: `{"target": ("x", 1)}` gives `window["target"][t] = x[t+1]`,
            and window.mask says where there is one.
        normalize: Of the windows, as for `StreamDataset`: `stream.normalization` of the stream that the model was
            trained on. Outputs are written as they are: `outputs` can turn them into the unit of a field.
        lanes: Sequences side by side, B; fewer where a task has fewer.
        window: Timesteps K that the model gets at once; the last ones of a sequence are padded with zeros.
        sequences: A subset: ids, in the order in which the new store has them; None: all, in the order of the store.
        workers: Processes that tasks run in; 0: this one. The model, the store and the functions are pickled, and a
            script needs `if __name__ == "__main__":`. Tasks are the same for any number, and so is the new store, to
            the bit with the same `threads`. A task has a sequence for each lane: with fewer than workers x lanes
            sequences, take fewer lanes.
        threads: torch's threads in each process; None: those that torch has, or each worker's share of them.
        backend: "zarr" or "arrow"; None: by the suffix of the path, `.zarr` or `.arrow`.
        chunk_bytes, shard_bytes: As for `ss.create`.
        lane_axis: Of the state, as for `TBPTT`; None: found.
        restart: Discard what an unfinished prediction left at `uri`, whatever its arguments, rather than go on.
        progress: Called with the timesteps done and of all, at the start and as it goes on.

    Raises:
        ResumeError: At `uri` is a prediction of another model, store version or settings. What a function does is known
            only by its name and its code, and a model by its parameters, buffers, kind and what `repr` says of it.
        StoreError: At `uri` is a store, or something else that is not an empty folder; or there is no such store.
        StreamseqError: Another process predicts into `uri`, or a worker died.
        KeyError: There is no such field or sequence.
        TypeError, ValueError: An argument is wrong, the outputs cannot be stored, the store has no timestep, or with
            workers something cannot be pickled.

    Example:
        >>> import tempfile, numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((5, 3), np.float32)}, "b": {"x": np.ones((2, 3), np.float32)}})
        >>> model = torch.nn.GRU(3, 4, batch_first=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = ss.predict(model, store, folder + "/hidden.zarr", lanes=2, window=2)
        ...     hidden = ss.open(report.store)
        ...     hidden.lengths.tolist(), hidden.read("a")["y"].shape, report.fields
        ([5, 2], (5, 4), {'y': 'float32[4]'})
    """
    began = time.monotonic()
    _check_arguments(model, inputs, outputs)
    for name, value, least in (("lanes", lanes, 1), ("window", window, 1), ("workers", workers, 0)):
        at_least(name, value, least)
    if threads is not None:
        at_least("threads", threads, 1)
    own_threads = threads or max(1, torch.get_num_threads() // max(1, workers))
    job = Job(local_path(uri))
    saved = None if restart else job.load()
    last = None if saved is None else job.report()
    store = open_input(store, uri, restart=restart)
    recipe = Recipe(
        model=model,
        store=store,
        inputs=inputs,
        outputs=outputs,
        lookahead=dict(lookahead or {}),
        lanes=lanes,
        window=window,
        lane_axis=lane_axis,
    )
    if normalize is not None and normalize is not False:
        read = list(dict.fromkeys([*recipe.fields, *(field for field, _ in recipe.lookahead.values())]))
        recipe = replace(recipe, normalize=find_scales(store, read, normalize))
    chosen = _chosen(store, sequences)
    settings = settings_of(recipe, chosen)
    settings |= {"backend": backend, "chunk bytes": chunk_bytes, "shard bytes": shard_bytes}
    if saved is not None:
        _check_same(job, saved.settings, settings, finished=last is not None)
    if last is not None:
        return replace(PredictReport(**last), finished_before=True)
    fields = _probe(recipe, chosen) if saved is None else saved.fields
    if saved is None or not job.has_store():
        create(uri, fields, backend, chunk_bytes, shard_bytes)  # refuses what cannot become a store, writes nothing
    layout = plan_layout(fields, backend or job.root.suffix.removeprefix("."), chunk_bytes, shard_bytes)
    tasks = _tasks(recipe, layout, chosen)
    with job.locked() as claim:
        if restart:
            job.discard()
        begun = job.load()
        if begun is not None:  # perhaps by another process, since this one looked
            _check_same(job, begun.settings, settings, finished=job.report() is not None)
        job.begin(settings, fields)
        before = job.receipts()
        if job.has_store():
            # It was killed after its commit, or somebody else was there first.
            if not job.is_committed(len(tasks)):
                raise StoreError(f"{job.root} is a store already, and not of this prediction: choose another address")
        else:
            meter = _Meter(progress, int(store.lengths[chosen].sum()), claim.refresh)
            meter.advance(sum(receipt.num_timesteps for receipt in before.values()))
            left = {number: task for number, task in enumerate(tasks) if number not in before}
            with thread_count(own_threads):
                run_tasks(recipe, layout, job, left, workers, meter.advance)
            _commit(job, layout, store, chosen, tasks)
        report = _report(job, len(tasks), len(before), began)
        job.finish(report.as_dict())
    return report


def open_input(store: Store | str | os.PathLike[str], uri: str | os.PathLike[str], *, restart: bool = False) -> Store:
    """The store that a prediction into `uri` reads: of an address the newest version, or the one it was begun with.

    Raises:
        StoreError: There is no such store or version.
        ResumeError: What was begun at `uri` cannot be read.
    """
    if isinstance(store, Store):
        return store
    job = Job(local_path(uri))
    begun = None if restart or job.report() is not None else job.load()
    return open_store(store, None if begun is None else begun.settings["store version"])


def _check_arguments(model: object, inputs: object, outputs: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"a model is a torch.nn.Module, whose parameters tell one from another, got a {type(model).__name__}: "
            "wrap it in one"
        )
    if not (isinstance(inputs, str) or callable(inputs)) and not (
        isinstance(inputs, list | tuple) and inputs and all(isinstance(name, str) for name in inputs)
    ):
        raise TypeError(f"inputs is a field's name, a list of them or a function of the window, got {inputs!r}")
    if outputs is not None and not callable(outputs):
        raise TypeError(f"outputs is a function (outputs, window) -> dict or None, got {outputs!r}")


def _chosen(store: Store, sequences: Iterable[str] | None) -> Int64:
    """The sequences of the new store, in its order, as indices into that of the old one."""
    if sequences is None:
        return np.arange(len(store))
    if isinstance(sequences, str):
        raise TypeError(f"sequences is a list of ids, got the string {sequences!r}: pass [{sequences!r}]")
    ids = sequences.to_pylist() if hasattr(sequences, "to_pylist") else list(sequences)
    chosen = store.indices(ids)
    again = np.flatnonzero(np.bincount(chosen) > 1) if len(chosen) else chosen
    if len(again):
        raise ValueError(f"every sequence is named once, got {store.id_of(int(again[0]))!r} twice")
    return chosen


def _check_same(job: Job, saved: Mapping[str, Any], settings: Mapping[str, Any], finished: bool) -> None:
    other = difference(saved, settings)
    if other is not None:
        what = "a finished" if finished else "an unfinished"
        discard = "" if finished else ", discard what was done with restart=True (--restart)"
        raise ResumeError(
            f"{job.root} holds {what} prediction with {other}: take the same{discard} or choose another address"
        )


def _probe(recipe: Recipe, chosen: Int64) -> dict[str, Field]:
    held = chosen[recipe.store.lengths[chosen] > 0]
    if not len(held):
        raise ValueError(
            "the fields of the new store are found from the outputs of the first window, and the sequences of "
            f"{recipe.store.uri} have no timestep: there is nothing to predict"
        )
    return probe_fields(recipe, held[: recipe.lanes])


def _tasks(recipe: Recipe, layout: ShardLayout, chosen: Int64) -> list[Int64]:
    """The sequences of each task, as indices into `store.ids`."""
    step_bytes = sum(field.step_bytes for field in layout.fields.values())
    tasks = plan_tasks(
        recipe.store.lengths[chosen],
        lanes=recipe.lanes,
        step_bytes=step_bytes,
        shard_bytes=layout.shard_timesteps * step_bytes,
        chunk_timesteps=max(recipe.store.chunk_timesteps[name] for name in recipe.fields),
    )
    return [chosen[task] for task in tasks]


class _Meter:
    """Adds up timesteps and tells whoever asked, and `alive` each time."""

    def __init__(self, tell: Callable[[int, int], None] | None, total: int, alive: Callable[[], None]) -> None:
        self._tell = tell
        self._alive = alive
        self._total = total
        self._done = 0

    def advance(self, timesteps: int) -> None:
        self._alive()
        self._done += timesteps
        if self._tell is not None:
            self._tell(self._done, self._total)


def _commit(job: Job, layout: ShardLayout, store: Store, chosen: Int64, tasks: Sequence[Int64]) -> None:
    """Make version 1 of what the tasks wrote."""
    # Without shards, but first: ids are in the order in which receipts name them.
    everything = Receipt(
        writer=uuid4().hex[:16],
        shards=(),
        ids=tuple(store.ids.take(chosen).to_pylist()),
        attrs=tuple(store.attrs_json(sequence) for sequence in chosen.tolist()),
        pieces=np.empty((0, 3), np.int64),
    )
    receipts = [everything]
    written = job.receipts()
    for number, task in enumerate(tasks):
        order = task[written_order(store.lengths[task], layout)]
        lengths = store.lengths[order]
        receipts.append(
            Receipt(
                writer=written[number].writer,
                shards=written[number].shards,
                ids=tuple(store.ids.take(order).to_pylist()),
                attrs=(None,) * len(order),
                pieces=np.stack([np.arange(len(order)), np.cumsum(lengths) - lengths, lengths], axis=1),
            )
        )
    try:
        commit_receipts(job.root, layout, receipts, job="predict")
    except VersionConflictError:
        job.discard()
        raise


def _report(job: Job, tasks: int, before: int, began: float) -> PredictReport:
    version = DiskStore(job.root, 1).snapshot
    return PredictReport(
        store=str(job.root),
        version=version.number,
        fields={
            name: f"{field.dtype}{list(field.shape) if field.shape else ''}"
            for name, field in version.layout.fields.items()
        },
        sequences=version.num_sequences,
        timesteps=version.num_timesteps,
        tasks=tasks,
        tasks_before=before,
        bytes_out=sum(stored.num_bytes for shard in version.shards for stored in shard.fields.values()),
        seconds=time.monotonic() - began,
    )
