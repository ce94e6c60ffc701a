"""Runs the tests of `tests/integration/snapshot/test_other_topics.py` on a cluster."""

import pytest

from tests.integration.snapshot.test_other_topics import *  # noqa: F403

pytestmark = pytest.mark.slow
