"""Transforms between a source and its store, right wherever pieces and partitions end.

A transform is one of these, your own function of a dict of arrays, or a class derived from `Stepwise`, `Halo` or
`InOrder`.
"""

from streamseq.etl.transforms_base import Arrays, Halo, InOrder, Operator, Stepwise, Transform, TransformError
from streamseq.etl.transforms_halo import Derivative, Filter, Windowed
from streamseq.etl.transforms_in_order import FillGaps, Resample, Scan
from streamseq.etl.transforms_stepwise import Cast, Clip, Function, Normalise, OneHot, Rename, Select
from streamseq.etl.transforms_text import parse_transform

__all__ = [
    "Arrays",
    "Cast",
    "Clip",
    "Derivative",
    "FillGaps",
    "Filter",
    "Function",
    "Halo",
    "InOrder",
    "Normalise",
    "OneHot",
    "Operator",
    "Rename",
    "Resample",
    "Scan",
    "Select",
    "Stepwise",
    "Transform",
    "TransformError",
    "Windowed",
    "parse_transform",
]
