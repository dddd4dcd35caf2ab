"""Boundaries inside sequences: found in a store, kept beside its sequences."""
