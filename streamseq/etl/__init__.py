"""ETL: sources of raw data, Dask collections among them, the job that writes them, and stores as Dask arrays."""

from streamseq.etl import transforms
from streamseq.etl.collections_array import ArrayCollection
from streamseq.etl.collections_bag import BagCollection
from streamseq.etl.collections_frame import FrameCollection
from streamseq.etl.dask_array import to_dask
from streamseq.etl.report import Report
from streamseq.etl.source import Partition, Piece, Pieces, Skipped, Source, SourceError, partition_bytes

__all__ = [
    "ArrayCollection",
    "BagCollection",
    "FrameCollection",
    "Partition",
    "Piece",
    "Pieces",
    "Report",
    "Skipped",
    "Source",
    "SourceError",
    "partition_bytes",
    "to_dask",
    "transforms",
]
