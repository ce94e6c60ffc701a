"""Runs the tests of `tests/integration/reading/test_sketches.py` on a cluster."""

import pytest

from tests.integration.reading.test_sketches import *  # noqa: F403

pytestmark = pytest.mark.slow
