"""Runs the tests of `tests/integration/test_aio.py` on a cluster."""

import pytest

from tests.integration.test_aio import *  # noqa: F403

pytestmark = pytest.mark.slow
