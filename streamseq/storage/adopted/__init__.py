"""Adopted stores: sequences in files that somebody else wrote, read in place."""
