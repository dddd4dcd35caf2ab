"""Which workers a job is to run on: said and checked before Dask is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a job: at most one of these is given; none of them means one thread a core.

    Args:
        client: The user's Dask client.
        threads: The number of threads of this process.
        scheduler: The address of a Dask scheduler.

    Raises:
        TypeError: The number of threads is not an int.
        ValueError: It is below 1, or more than one of the three is given.
    """

    client: Client | None = None
    threads: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.client, self.threads, self.scheduler)) > 1:
            raise ValueError("a job runs on a client, a scheduler or so many workers: give one of them")
        if self.threads is None:
            return
        if isinstance(self.threads, bool) or not isinstance(self.threads, int):
            raise TypeError(f"the number of workers is an int, got {type(self.threads).__name__}")
        if self.threads < 1:
            raise ValueError(f"a job has at least 1 worker, got {self.threads}")
