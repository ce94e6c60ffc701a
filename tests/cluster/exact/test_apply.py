"""Runs the tests of `tests/integration/counting/test_apply.py` on a cluster."""

import pytest

from tests.integration.counting.test_apply import *  # noqa: F403

del test_a_lost_reply_counts_once, test_a_lost_request_counts_once  # noqa: F821  # they use a proxy to a single server

pytestmark = pytest.mark.slow
