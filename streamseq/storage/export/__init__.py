"""Stores as what other libraries read."""
