"""Runs the tests of `tests/integration/alerts/test_alerts.py` on a cluster."""

import pytest

from tests.integration.alerts.test_alerts import *  # noqa: F403

pytestmark = pytest.mark.slow
