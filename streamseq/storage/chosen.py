"""Sequences that were chosen from a store, as streams and statistics take them: ids or spans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamseq.core.selection import Selection, select_all, select_spans
from streamseq.storage.interface import Store


def choose(store: Store, sequences: Iterable[Any] | None) -> Selection:
    """Find sequences of a store.

    Args:
        store: The store.
        sequences: Ids, or `(id, start, stop)` spans; None for all.

    Raises:
        KeyError: There is no such sequence.
        PlanError: There is none.
        TypeError: It is one string.
        ValueError: What is meant to be a span is none, or does not lie in its sequence.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [1.0, 2.0]}, "b": {"x": [3.0]}})
        >>> choose(store, ["b", ("a", 1, 2)]).sequence.tolist()
        [1, 0]
    """
    if sequences is None:
        return select_all(store.lengths)
    if isinstance(sequences, str):
        raise TypeError(f"sequences is a list of ids or spans, got the string {sequences!r}: pass [{sequences!r}]")
    names_or_spans = sequences.to_pylist() if hasattr(sequences, "to_pylist") else list(sequences)
    names, spans = [], []
    for each in names_or_spans:
        if isinstance(each, tuple | list):
            if len(each) != 3:
                raise ValueError(f"a span is (id, start, stop), got {each!r}")
            name, start, stop = each
        else:
            name, start, stop = each, 0, None
        names.append(name)
        spans.append((start, stop))
    indices = store.indices(names).tolist()
    return select_spans(store.lengths, [(index, *span) for index, span in zip(indices, spans, strict=True)])
