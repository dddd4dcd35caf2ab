"""The errors that streamseq raises, grouped by what a handler would do about them."""


class StreamseqError(Exception):
    """The root of every error that is streamseq's own. Wrong argument values are `ValueError` or `TypeError`."""


class StoreError(StreamseqError):
    """There is no store at this place, nothing was committed to it, or it cannot be read as one."""


class CorruptionError(StoreError):
    """Bytes of a store are not what was written: the message names store, shard, field and chunk."""


class VersionConflictError(StoreError):
    """Another writer committed the version that this writer was about to commit."""


class ContinuityError(StreamseqError):
    """A window reached the carried state that does not follow the window before it on some lane."""


class ResumeError(StreamseqError):
    """A saved position, state or checkpoint belongs to another store version, plan or run."""


class PlanError(StreamseqError):
    """The sequences cannot be laid out as asked."""
