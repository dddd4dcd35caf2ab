"""Shards: how chunks are cut, encoded, written, found, checked and decoded, for both backends."""
