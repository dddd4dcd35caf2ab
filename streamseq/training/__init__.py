"""A reference trainer, and its parts for a loop of one's own."""
