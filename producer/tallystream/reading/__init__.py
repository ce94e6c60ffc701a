"""Reads counters: queries without I/O, and `Totals`, which sends them to the server."""
