"""The tables of a snapshot, for SQLite and PostgreSQL alike; made for people who ask, too.

SELECT subject, value FROM totals WHERE metric = 'view' ORDER BY value DESC LIMIT 10

A metric that is spread has a row for each partition:

SELECT subject, SUM(value) AS value FROM totals WHERE metric = 'view' GROUP BY subject ORDER BY value DESC LIMIT 10
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text

FORMAT: Final = "2"

metadata: Final = MetaData()


def _table(name: str, keys: str, value: Any, *, spread: bool = False) -> Table:
    parts = [Column(key, Text, primary_key=True) for key in keys.split()]
    partition = Column("partition", Integer, nullable=False, primary_key=spread, autoincrement=False)
    return Table(name, metadata, *parts, partition, Column("value", value))


totals: Final = _table("totals", "metric subject", BigInteger, spread=True)
upvotes: Final = _table("upvotes", "metric subject", BigInteger)
windows: Final = _table("windows", "window metric label subject", BigInteger, spread=True)
limits: Final = _table("limits", "metric label subject", BigInteger)  # what was asked, the rejected included
votes: Final = _table("votes", "metric label subject actor", Text)  # "<at> <amount> <labels>"
ids: Final = _table("ids", "metric label subject id", Text)  # the same
uniques: Final = _table("uniques", "metric label subject", LargeBinary)  # HyperLogLog, as Redis keeps it

COUNTERS: Final = {table.name: table for table in (totals, upvotes, windows, limits, votes, ids, uniques)}
"""Those with a row for each counter: metric or window first, the value last."""

structures: Final = Table(
    "structures",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary),
)
"""Sketches, Bloom filters, and leaderboards of what is sketched."""

buckets: Final = Table(
    "buckets",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("expires", BigInteger, nullable=False),
)
"""Milliseconds since 1970 at which a bucket expires; 0: never."""

ledger: Final = Table(
    "ledger",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("field", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

alerts: Final = Table(
    "alerts",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("expires", BigInteger, nullable=False),
)
"""What alerts remember, as JSON: see `tallystream_worker.snapshot.alerts`."""

producers: Final = Table(
    "producers",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("producer", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""`<sequence> <stream ID>`: what a producer appended last."""

positions: Final = Table(
    "positions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("taken", BigInteger, nullable=False),
    Column("delivered", Text, nullable=False),
    Column("generated", Text, nullable=False),
    Column("pending", Text, nullable=False),
    Column("generation", Integer, nullable=False),
)
"""The moment of each partition's rows: see `tallystream_worker.snapshot.point_in_time.SnapshotPosition`."""

facts: Final = Table("facts", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))
"""Format, namespace, partitions, epoch and rules: what `tally:meta` said."""
