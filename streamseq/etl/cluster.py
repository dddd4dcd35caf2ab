"""The Dask cluster of a job: the only module that talks to Dask."""

# Most of distributed has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from typing import Any

import dask
import distributed
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.comm.addressing import get_address_host_port
from distributed.protocol.pickle import dumps, loads

from streamseq.core.errors import StreamseqError
from streamseq.etl.workers import Workers

# Enough for every thread to find its next task waiting, few enough that a huge source fits in the scheduler.
_TASKS_PER_THREAD = 2
# How long a cluster may have no workers at all: some take this long to start, or to come back.
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 2.0
# How long tasks get to end when their job has; each looks after every piece of its data.
_LAST_WAIT_SECONDS = 10.0
_CONNECT_SECONDS = 10.0


class Pool:
    """Runs tasks on the workers of a client."""

    def __init__(self, client: Client) -> None:
        if client.asynchronous:
            raise TypeError(
                "a job needs a synchronous Dask client, got an asynchronous one: use distributed.Client(address)"
            )
        self._client = client
        self._last_worker_seen = time.monotonic()

    @property
    def dashboard(self) -> str | None:
        """The address of Dask's dashboard; None where the scheduler has none."""
        try:
            link = self._client.dashboard_link
        except (KeyError, AttributeError, ValueError):  # the scheduler was started without one
            return None
        return str(link) if link else None

    def capacity(self) -> int:
        """How many tasks should be in flight."""
        return _TASKS_PER_THREAD * self.num_threads()

    def num_threads(self) -> int:
        """How many tasks run at the same time; 1 where no worker has come yet."""
        return max(1, sum(self._client.nthreads().values()))

    def most_threads(self) -> int:
        """How many tasks share a process at most."""
        return max(self._client.nthreads().values(), default=1)

    def submit(self, function: Callable[..., Any], *args: object) -> Future[Any]:
        """Start a task. One that a worker dies of is tried again elsewhere, as Dask is configured."""
        # Dask would look through all arguments, and the scheduler would make them anew.
        packed = dumps((function, args))
        return self._client.submit(_call, packed, key=f"{function.__name__}-{uuid.uuid4().hex}", pure=False)

    def submit_graph(self, tasks: dict[Any, Any], wanted: list[Any]) -> list[Future[Any]]:
        """Start tasks that depend on each other, or on what is on the workers; return what some of them will have."""
        futures: list[Future[Any]] = self._client.get(tasks, wanted, sync=False)
        return futures

    def check_collections(self, collections: Sequence[Any]) -> None:
        """Check that Dask collections are on this cluster, where they have been persisted.

        Raises:
            ValueError: One is on another.
            StreamseqError: One is on none any more.
        """
        here = _address(self._client)
        try:
            clients = {future.client for future in distributed.futures_of(list(collections))}
        except CancelledError:
            raise _lost() from None
        for there in map(_address, clients):
            if there != here:
                raise ValueError(
                    f"a persisted collection is written where it lies, this one is at {there} and the job at {here}: "
                    "pass its client"
                )

    def wait(self, futures: list[Future[Any]]) -> set[Future[Any]]:
        """Return the tasks that have ended; none where none has for a few seconds.

        Raises:
            StreamseqError: The cluster is gone, or has had no workers for a minute.
        """
        try:
            with self._client.as_current():
                return set(distributed.wait(futures, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done)
        except CancelledError:
            raise _lost() from None
        except TimeoutError:
            self._look_for_workers()
            return set()

    def result(self, future: Future[Any]) -> Any:
        """Return what an ended task returned, or raise what it raised.

        Raises:
            StreamseqError: The workers died that ran it.
        """
        try:
            return future.result()
        except KilledWorker as error:
            raise StreamseqError(
                f"a Dask worker died of a task, and so did those that tried it again ({error.last_worker.address} was "
                "the last): look into its log, memory may have run out"
            ) from None
        except CancelledError:
            raise _lost() from None

    def let_end(self, futures: list[Future[Any]]) -> None:
        """Wait a little for tasks whose job has ended, and forget them."""
        try:
            with self._client.as_current():
                distributed.wait(futures, timeout=_LAST_WAIT_SECONDS)
        except (TimeoutError, CancelledError):
            self._client.cancel(futures)

    def _look_for_workers(self) -> None:
        now = time.monotonic()
        if self._client.nthreads():
            self._last_worker_seen = now
        elif now - self._last_worker_seen > _PATIENCE_SECONDS:
            raise StreamseqError(
                f"the Dask cluster has had no worker for {_PATIENCE_SECONDS:.0f} s, they died or never came: look into "
                "their logs"
            )


@contextmanager
def connect(workers: Workers, *, threads: bool = True, tasks: int | None = None) -> Iterator[Pool]:
    """Yield the pool of a job; a client or cluster that was made for it is closed at the end.

    Args:
        workers: Which workers.
        threads: Whether workers of this machine are threads of this process, or processes.
        tasks: How many tasks there are, for as many workers of this machine at most; None: nobody knows.

    Raises:
        StreamseqError: No scheduler answers at the address.
    """
    if workers.client is not None:
        yield Pool(workers.client)
    elif workers.scheduler is not None:
        _look_for_scheduler(workers.scheduler)
        with Client(workers.scheduler, set_as_default=False) as remote:
            yield Pool(remote)
    else:
        number = min(workers.threads or os.cpu_count() or 1, tasks or sys.maxsize)
        with (
            # No pages that nobody looks at, no profile of tasks that are in C most of the time.
            dask.config.set(
                {
                    "distributed.scheduler.http.routes": [],
                    "distributed.worker.http.routes": [],
                    "distributed.worker.profile.enabled": False,
                }
            ),
            _cluster_of_this_machine(number, threads) as cluster,
            Client(cluster, set_as_default=False) as local,
        ):
            yield Pool(local)


def _cluster_of_this_machine(number: int, threads: bool) -> LocalCluster:
    # Threads where reading, checksums and compression release the GIL: nothing has to be copied to a process. What
    # goes wrong in a task is told by its error, so the cluster's log would only say it twice.
    with nullcontext() if threads else _ctrl_c_for_this_thread_only():
        return LocalCluster(
            n_workers=1 if threads else number,
            threads_per_worker=number if threads else 1,
            processes=not threads,
            memory_limit=0,
            # None would open ports to all interfaces, one of them 8787, with a warning where another job has it.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        )


@contextmanager
def _ctrl_c_for_this_thread_only() -> Iterator[None]:
    """Keep Ctrl-C from the threads and processes that begin in the block; this thread gets it after the block.

    A terminal sends it to all processes of a command. Workers that die of it would be a page of tracebacks, and the job
    would wait for them in vain.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Which lets Ctrl-C in again where it begins together with the first process.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(packed: bytes) -> Any:
    """Call the function that was packed with its arguments."""
    function, args = loads(packed)
    return function(*args)


def _look_for_scheduler(address: str) -> None:
    """Check that something listens there: a client that cannot connect tries long, and leaves noise behind."""
    try:
        host, port = get_address_host_port(address, strict=True)
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, TypeError, ValueError) as error:
        raise StreamseqError(
            f"no Dask scheduler answers at {address!r}: give one like tcp://host:8786 ({error})"
        ) from None


def _address(client: Client) -> str:
    return "no scheduler any more" if client.scheduler is None else str(client.scheduler.address)


def _lost() -> StreamseqError:
    return StreamseqError("the Dask cluster was closed or lost while it worked: start it again and repeat the job")
