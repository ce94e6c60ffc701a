"""Runs the tests of `tests/integration/ingest/test_ingest_once.py` on a cluster."""

import pytest

from tests.integration.ingest.test_ingest_once import *  # noqa: F403

del test_a_lost_reply_counts_nothing_twice  # noqa: F821  # it uses a proxy to a single server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # property tests need many commands in each example
