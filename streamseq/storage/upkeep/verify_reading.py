"""`verify` of a store that has no chunks of its own: every timestep is read, and what cannot be is a problem."""

from __future__ import annotations

import time
from collections.abc import Callable

from streamseq.core.errors import StreamseqError
from streamseq.storage.interface import Store
from streamseq.storage.upkeep.findings import Problem, Span, VerifyReport

# Decoded bytes that are read together.
_PART_BYTES = 8 << 20


def verify_by_reading(store: Store, progress: Callable[[int, int], None] | None) -> VerifyReport:
    """Read all of a store, a part at a time.

    Args:
        store: The store.
        progress: Called with the timesteps that are done and all there are, at the start and after each sequence.
    """
    began = time.monotonic()
    problems: list[Problem] = []
    done, total = 0, store.num_timesteps
    if progress is not None:
        progress(0, total)
    for sequence, length in enumerate(store.lengths.tolist()):
        for name, field in store.fields.items():
            steps = max(1, _PART_BYTES // field.step_bytes)
            for start in range(0, length, steps):
                stop = min(start + steps, length)
                try:
                    store.read(sequence, start, stop, [name])
                except (StreamseqError, OSError) as error:
                    span = Span(id=store.ids[sequence].as_py(), sequence=sequence, start=start, stop=stop)
                    what = " ".join(str(error).split())
                    problems.append(
                        Problem(
                            store=store.uri,
                            versions=(store.version,),
                            part="shard",
                            what=what,
                            field=name,
                            spans=(span,),
                        )
                    )
        done += length
        if progress is not None:
            progress(done, total)
    return VerifyReport(
        store=store.uri,
        versions=(store.version,),
        problems=tuple(problems),
        sequences=len(store),
        timesteps=total,
        seconds=time.monotonic() - began,
    )
