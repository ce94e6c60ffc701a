"""All rows of the table: importing this enters them."""

from __future__ import annotations

from tests.faults import (
    rows_cluster,
    rows_failover,
    rows_input,
    rows_link,
    rows_producer,
    rows_server,
    rows_stream,
    rows_worker,
)
from tests.faults.table import NOT_YET, ROWS

NOT_YET[33] = "not yet a row with seeds: tests/integration/test_snapshot.py kills a snapshot at each of its steps"

__all__ = [
    "NOT_YET",
    "ROWS",
    "rows_cluster",
    "rows_failover",
    "rows_input",
    "rows_link",
    "rows_producer",
    "rows_server",
    "rows_stream",
    "rows_worker",
]
