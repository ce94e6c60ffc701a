"""Runs the tests of `tests/integration/rebuild/test_retract.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_retract import *  # noqa: F403

pytestmark = pytest.mark.slow
