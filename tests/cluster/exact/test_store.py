"""Runs the tests of `tests/integration/dead_letters/test_store.py` on a cluster."""

import pytest

from tests.integration.dead_letters.test_store import *  # noqa: F403

pytestmark = pytest.mark.slow
