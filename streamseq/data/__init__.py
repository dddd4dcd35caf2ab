"""Streams: windows, datasets, loaders and the carried state, on torch."""
