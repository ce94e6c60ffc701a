"""Runs the tests of `tests/integration/rebuild/test_replay.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_replay import *  # noqa: F403

pytestmark = pytest.mark.slow
