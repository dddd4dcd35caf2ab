"""ETL: sources of raw data and the Dask job that writes them into a store."""

from streamseq.etl.report import Report
from streamseq.etl.source import Partition, Piece, Skipped, Source, SourceError, partition_bytes

__all__ = ["Partition", "Piece", "Report", "Skipped", "Source", "SourceError", "partition_bytes"]
