"""Running the tasks of a prediction: in this process, or in several."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamseq.core.errors import StreamseqError
from streamseq.storage.layout import ShardLayout
from streamseq.training.predict_job import Job
from streamseq.training.predict_task import Recipe, run_task

Int64 = NDArray[np.int64]

# How often progress is told while tasks run elsewhere.
_POLL_SECONDS = 0.2


def run_tasks(
    recipe: Recipe,
    layout: ShardLayout,
    job: Job,
    tasks: Mapping[int, Int64],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Run tasks, each of which leaves a receipt.

    Args:
        recipe: What is computed.
        layout: How shards are cut and encoded.
        job: Where receipts lie.
        tasks: The sequences of each task, by its number.
        workers: Processes, each with as many of torch's threads as this one has now; 0: this one.
        advance: Called with timesteps that are done.

    Raises:
        TypeError: There are workers, and the recipe cannot be pickled.
        StreamseqError: A worker died.
    """
    if not workers:
        for number, sequences in tasks.items():
            run_task(recipe, layout, job, number, sequences, advance)
        return
    work = _pickled(recipe, layout, job)
    context = get_context("spawn")
    done = context.Value("q", 0)
    told = 0
    pool = ProcessPoolExecutor(
        min(workers, max(1, len(tasks))),
        mp_context=context,
        initializer=_begin_worker,
        initargs=(work, torch.get_num_threads(), done),
    )
    with pool:
        running: set[Future[None]] = set()
        try:
            with _ctrl_c_is_for_the_parent():
                running = {pool.submit(_run_here, number, sequences) for number, sequences in tasks.items()}
            while running:
                ended, running = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                now = int(done.value)
                if now > told:
                    advance(now - told)
                told = now
        except BaseException as error:
            job.stop()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise StreamseqError(
                    "a worker process died: memory may have run out, or the script has no "
                    '`if __name__ == "__main__":` around what it does; the same call goes on with what is done'
                ) from None
            raise


def _pickled(recipe: Recipe, layout: ShardLayout, job: Job) -> bytes:
    try:
        return pickle.dumps((recipe, layout, job))
    except Exception as error:  # whatever the model's or function's own code raises
        raise TypeError(
            "with workers the model, the store, inputs and outputs are pickled for other processes, and one cannot be "
            f"({' '.join(str(error).split())}): define it at the top of a module, or take workers=0"
        ) from error


@contextmanager
def _ctrl_c_is_for_the_parent() -> Iterator[None]:
    """Processes that are started here ignore Ctrl-C from their first moment: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Worker:
    """What a worker process holds from one task to the next."""

    def __init__(self, work: bytes, done: Any) -> None:
        self._work = work
        self._done = done
        self._unpickled: tuple[Recipe, ShardLayout, Job] | None = None

    def run(self, number: int, sequences: Int64) -> None:
        if self._unpickled is None:
            # Here and not when the process begins, so that what goes wrong is told.
            try:
                self._unpickled = pickle.loads(self._work)
            except Exception as error:
                raise StreamseqError(
                    f"a worker process cannot load the model, the store, inputs or outputs ({error}): define them in a "
                    "module that it can import, or take workers=0"
                ) from error
        recipe, layout, job = self._unpickled
        run_task(recipe, layout, job, number, sequences, self._advance)

    def _advance(self, timesteps: int) -> None:
        with self._done.get_lock():
            self._done.value += timesteps


_worker: _Worker | None = None


def _begin_worker(work: bytes, threads: int, done: Any) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = _Worker(work, done)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """End this process when its parent was killed, for nobody would commit what it does."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run_here(number: int, sequences: Int64) -> None:
    assert _worker is not None
    _worker.run(number, sequences)
