"""Runs the tests of `tests/integration/rebuild/test_generations.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_generations import *  # noqa: F403

pytestmark = pytest.mark.slow
