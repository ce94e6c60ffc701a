"""All rows of the table: importing this enters them."""

from __future__ import annotations

from tests.faults import rows_failover, rows_input, rows_link, rows_producer, rows_server, rows_stream, rows_worker
from tests.faults.table import NOT_YET, ROWS

NOT_YET[33] = "there is no snapshot yet; the same of the archive is in tests/integration/test_archive.py"
NOT_YET[32] = "slots that move need a client that speaks to a cluster"

__all__ = [
    "NOT_YET",
    "ROWS",
    "rows_failover",
    "rows_input",
    "rows_link",
    "rows_producer",
    "rows_server",
    "rows_stream",
    "rows_worker",
]
