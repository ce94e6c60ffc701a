"""Runs the tests of `tests/integration/repartition/test_migration.py` on a cluster."""

import pytest

from tests.integration.repartition.test_migration import *  # noqa: F403

pytestmark = pytest.mark.slow

del test_an_ingest_is_checked_across_a_move  # noqa: F821  # it puts an older copy of one server back
