"""All rows of the fault table: importing this module imports every `rows_*` module, which fills `ROWS`."""

from __future__ import annotations

from tests.faults import (
    rows_cluster,
    rows_commands,
    rows_failover,
    rows_input,
    rows_link,
    rows_nodes,
    rows_operator,
    rows_producer,
    rows_rollback,
    rows_server,
    rows_snapshot,
    rows_stream,
    rows_worker,
)
from tests.faults.table import ROWS

__all__ = [
    "ROWS",
    "rows_cluster",
    "rows_commands",
    "rows_failover",
    "rows_input",
    "rows_link",
    "rows_nodes",
    "rows_operator",
    "rows_producer",
    "rows_rollback",
    "rows_server",
    "rows_snapshot",
    "rows_stream",
    "rows_worker",
]
