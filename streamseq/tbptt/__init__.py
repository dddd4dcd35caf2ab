"""The TBPTT(k1, k2) engine."""
