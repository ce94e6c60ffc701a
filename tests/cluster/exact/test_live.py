"""Runs the tests of `tests/integration/live/test_live.py` on a cluster."""

import pytest

from tests.integration.live.test_live import *  # noqa: F403

pytestmark = pytest.mark.slow
