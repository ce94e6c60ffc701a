"""Runs the tests of `tests/integration/rebuild/test_reset.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_reset import *  # noqa: F403

pytestmark = pytest.mark.slow
