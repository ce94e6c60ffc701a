"""Runs the tests of `tests/integration/counting/test_replay_exact.py` on a cluster."""

import pytest

from tests.integration.counting.test_replay_exact import *  # noqa: F403

pytestmark = pytest.mark.slow
