"""Counts history again: rebuild, audit, replay, retract and reset.

Data flows down: `source` yields every entry that the archive or a stream still has, `backfill` counts entries outside
a consumer group, `rebuild` builds a generation of counters and switches to it, `compare` finds the counters that a
switch changes, `audit` folds everything again in a scratch server and compares the live counters with the result.
"""
