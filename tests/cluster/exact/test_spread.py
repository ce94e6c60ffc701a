"""Runs the tests of `tests/integration/counting/test_spread.py` on a cluster."""

import pytest

from tests.integration.counting.test_spread import *  # noqa: F403

pytestmark = pytest.mark.slow
