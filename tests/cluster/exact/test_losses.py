"""Runs the tests of `tests/integration/maintenance/test_losses.py` on a cluster."""

import pytest

from tests.integration.maintenance.test_losses import *  # noqa: F403

pytestmark = pytest.mark.slow
