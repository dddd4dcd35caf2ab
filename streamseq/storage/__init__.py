"""Stores: writing, committing and reading chunked sequences on disk, and the same interface in memory."""
