"""Runs the tests of `tests/integration/runtime/test_supervisor.py` on a cluster."""

import pytest

from tests.integration.runtime.test_supervisor import *  # noqa: F403

pytestmark = pytest.mark.slow
