"""Runs the tests of `tests/integration/reading/test_totals.py` on a cluster."""

import pytest

from tests.integration.reading.test_totals import *  # noqa: F403

pytestmark = pytest.mark.slow
