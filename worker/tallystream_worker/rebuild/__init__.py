"""Generations of counters: built anew from the log, compared, switched to, undone, dropped.

Data flows down: `source` yields what was ever appended, `backfill` counts what the stream no longer holds, `rebuild`
builds and switches, `compare` says what differs, `audit` folds everything again beside the live counters.
"""
