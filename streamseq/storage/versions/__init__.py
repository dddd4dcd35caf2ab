"""Versions: what one holds and says, how one comes to be, and who is at work on the next."""
