"""Runs the tests of `tests/integration/reading/test_series.py` on a cluster."""

import pytest

from tests.integration.reading.test_series import *  # noqa: F403

pytestmark = pytest.mark.slow
