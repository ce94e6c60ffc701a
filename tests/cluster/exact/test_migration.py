"""Runs the tests of `tests/integration/repartition/test_migration.py` on a cluster."""

import pytest

from tests.integration.repartition.test_migration import *  # noqa: F403

pytestmark = pytest.mark.slow
