"""The probe that picks torch's number of threads: on a busy or small machine more threads can be slower."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

SECONDS = 1.5
MIN_ROUNDS, MAX_ROUNDS = 3, 20
WORTH = 0.85


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def candidate_threads(cores: int) -> list[int]:
    """1, 2, 4, …, and `cores` itself."""
    return sorted({cores, *(1 << power for power in range(cores.bit_length()))})


def choose_threads(
    work: Callable[[], object],
    candidates: Sequence[int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The number of threads with which `work` is fastest; of two that differ little the smaller.

    The candidates take turns, so that a machine that gets busy meanwhile slows all of them. A larger number must
    take less than 85 % of the time of the smaller one: it uses more of the machine and suffers more from neighbours.
    It takes a second or two, and longer where one call does.

    Args:
        work: Something short that is like what is to be run, such as one update.
        candidates: Ascending numbers of threads; None: 1, 2, 4, … up to the cores of this process.
        clock: Seconds.

    Returns:
        One of the candidates. torch's own number of threads is afterwards as it was.

    Raises:
        ValueError: There is no candidate, or one is less than 1.
    """
    numbers = candidate_threads(available_cores()) if candidates is None else list(candidates)
    if not numbers or min(numbers) < 1:
        raise ValueError(f"the candidates are numbers of threads, at least 1 each, got {numbers}")
    if len(numbers) == 1:
        return numbers[0]
    spent = dict.fromkeys(numbers, 0.0)
    for turn in range(MAX_ROUNDS + 1):
        if turn > MIN_ROUNDS and sum(spent.values()) > SECONDS:
            break
        for number in numbers:
            with thread_count(number):
                begin = clock()
                work()
                # The first round warms up.
                spent[number] += clock() - begin if turn else 0.0
    # Means, not medians: where threads wait for a core that is taken, a few slow rounds are the cost.
    best = numbers[0]
    for number in numbers[1:]:
        if spent[number] < WORTH * spent[best]:
            best = number
    return best


@contextmanager
def thread_count(number: int) -> Iterator[None]:
    """torch with this number of threads inside one operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
