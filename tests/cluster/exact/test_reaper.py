"""Runs the tests of `tests/integration/maintenance/test_reaper.py` on a cluster."""

import pytest

from tests.integration.maintenance.test_reaper import *  # noqa: F403

pytestmark = pytest.mark.slow
