"""Defines the tables of a snapshot, for SQLite and PostgreSQL. They can also be queried directly.

SELECT subject, value FROM totals WHERE metric = 'view' ORDER BY value DESC LIMIT 10

A metric that is spread has a row for each partition:

SELECT subject, SUM(value) AS value FROM totals WHERE metric = 'view' GROUP BY subject ORDER BY value DESC LIMIT 10
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text

FORMAT: Final = "7"
"""The version of these tables, stored in `facts`."""

metadata: Final = MetaData()
"""All tables of a snapshot."""


def _table(name: str, keys: str, value: Any, *, spread: bool = False) -> Table:
    parts = [Column(key, Text, primary_key=True) for key in keys.split()]
    partition = Column("partition", Integer, nullable=False, primary_key=spread, autoincrement=False)
    return Table(name, metadata, *parts, partition, Column("value", value))


totals: Final = _table("totals", "metric subject", BigInteger, spread=True)
"""The all-time total of each subject."""

upvotes: Final = _table("upvotes", "metric subject", BigInteger)
"""Numbers of a subject's votes with an amount above 0."""

windows: Final = _table("windows", "window metric label subject", BigInteger, spread=True)
"""Sums in the buckets of windows."""

limits: Final = _table("limits", "metric label subject", BigInteger)
"""Numbers of events in the buckets of limits, the rejected ones included."""

votes: Final = _table("votes", "metric label subject actor", Text)
"""Votes, as `<at>@<place in the log> <amount> <labels>`. The row without an actor has the stream ID of the subject's
last reset, or `0-0`: votes before it have the amount 0."""

ids: Final = _table("ids", "metric label subject id", Text)
"""The earliest event with each id in a period, as `<at> <amount> <labels>`; `rules/records.lua` has the details."""

uniques: Final = _table("uniques", "metric label subject", LargeBinary)
"""HyperLogLogs of actors, in the bytes of Redis."""

COUNTERS: Final = {table.name: table for table in (totals, upvotes, windows, limits, votes, ids, uniques)}
"""The tables with one row for each counter, by name; the first column is `metric` or `window`, the last `value`."""

structures: Final = Table(
    "structures",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary),
)
"""Sketches, Bloom filters, and leaderboards of metrics with a sketch (JSON: lists of subject and score)."""

buckets: Final = Table(
    "buckets",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("expires", BigInteger, nullable=False),
)
"""The millisecond since 1970 until which the log needs the keys of each bucket; 0 for forever."""

ledger: Final = Table(
    "ledger",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("field", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""The ledgers, by partition."""

alerts: Final = Table(
    "alerts",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("expires", BigInteger, nullable=False),
)
"""By key without prefix, as JSON: the states of alerts (see `tallystream_worker.snapshot.alerts`), the records of
dropped dead letters, the places of resets, and the ends of removed periods. `expires` is a millisecond since 1970, or 0
for never."""

producers: Final = Table(
    "producers",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("producer", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""The last entry of each producer, as `<sequence> <stream ID>`; and the horizons, see `HORIZONS`."""

dead: Final = Table(
    "dead",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
"""The dead letters: by ID in the dead stream, the names and values of the fields, as a list in msgpack."""

positions: Final = Table(
    "positions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("taken", BigInteger, nullable=False),
    Column("delivered", Text, nullable=False),
    Column("generated", Text, nullable=False),
    Column("pending", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("mark", Text, nullable=False),
    Column("unsent", Text, nullable=False),
    Column("uncounted", Text, nullable=False),
    Column("dead", Text, nullable=False),
)
"""The moment of each partition's rows: see `tallystream_worker.snapshot.point_in_time.SnapshotPosition`."""

facts: Final = Table("facts", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))
"""Format, namespace, partitions, epoch, rules and other facts of the deployment, from `tally:meta`."""

digests: Final = Table(
    "digests",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""The number of a partition's rows in each other table, and the sum of their hashes, which show whether another program
has changed a row: see `tallystream_worker.snapshot.digests`. The partition of the table `facts` is -1."""
