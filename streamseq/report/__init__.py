"""One page to look at, of a store, a training run or a search; `ss.report(...)` is `report` of `write`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamseq.report.write import Report


class _Report(ModuleType):
    """This package, which can be called: importing any module of it makes it the attribute `report` of streamseq."""

    def __call__(self, *args: Any, **options: Any) -> Report:
        """See `streamseq.report.write.report`."""
        from streamseq.report.write import report

        return report(*args, **options)


sys.modules[__name__].__class__ = _Report
