"""Runs the tests of `tests/integration/reading/test_coalescing.py` on a cluster."""

import pytest

from tests.integration.reading.test_coalescing import *  # noqa: F403

pytestmark = pytest.mark.slow
