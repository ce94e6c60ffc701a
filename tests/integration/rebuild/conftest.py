"""Runs each test here on one kind of server a day."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.kinds_of_today import leave_out

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of this folder whose other kind of server is due today."""
    leave_out(Path(__file__).parent, config, items)
