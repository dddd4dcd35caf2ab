"""Systematic search: many candidates, one budget, the best of them; `ss.search(...)` is `search` of `run`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamseq.search.result import SearchResult


class _Search(ModuleType):
    """This package, which can be called: importing any module of it makes it the attribute `search` of streamseq."""

    def __call__(self, *args: Any, **options: Any) -> SearchResult:
        """See `streamseq.search.run.search`."""
        from streamseq.search.run import search

        return search(*args, **options)


sys.modules[__name__].__class__ = _Search
