"""Runs the tests of `tests/integration/counting/test_rules_exact.py` on a cluster."""

import pytest

from tests.integration.counting.test_rules_exact import *  # noqa: F403

pytestmark = pytest.mark.slow
