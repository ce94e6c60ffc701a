"""Runs the tests of `tests/integration/snapshot/test_interrupted_restores.py` on a cluster."""

import pytest

from tests.integration.snapshot.test_interrupted_restores import *  # noqa: F403

pytestmark = pytest.mark.slow
