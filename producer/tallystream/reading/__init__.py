"""Reads counters: queries without I/O, and `Totals`, which runs them."""
