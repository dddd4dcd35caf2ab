"""The libraries that streamseq is measured beside, each in its own recommended way."""
