"""Copies the counters of one moment into a database, and restores them.

`changed_keys` finds the counters that changed since the last snapshot, `point_in_time` fixes a moment, `values` reads,
`database` writes, and `snapshotter` runs these steps. `restore` writes a snapshot back, and `drill` tests a restore.
"""
