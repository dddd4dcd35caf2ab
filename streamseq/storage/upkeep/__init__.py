"""Looking after stores: verify, repair, compact, clean, log and info."""
