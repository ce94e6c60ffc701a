"""Runs the tests of `tests/integration/snapshot/test_snapshot.py` on a cluster."""

import pytest

from tests.integration.snapshot.test_snapshot import *  # noqa: F403

pytestmark = pytest.mark.slow
