"""Snapshots: the counters of one moment in a database, what changed since the last at a time, and back from there.

`touched` says what changed, from the log; `cut` fixes a moment; `values` reads; `database` writes; `taker` does it
all; `restore` goes the other way, and `drill` tries that out.
"""
