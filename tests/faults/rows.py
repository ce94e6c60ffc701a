"""All rows of the table: importing this enters them."""

from __future__ import annotations

from tests.faults import rows_link, rows_server, rows_worker
from tests.faults.table import NOT_YET, ROWS

__all__ = ["NOT_YET", "ROWS", "rows_link", "rows_server", "rows_worker"]
