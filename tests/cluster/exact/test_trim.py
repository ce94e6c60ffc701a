"""Runs the tests of `tests/integration/maintenance/test_trim.py` on a cluster."""

import pytest

from tests.integration.maintenance.test_trim import *  # noqa: F403

pytestmark = pytest.mark.slow
