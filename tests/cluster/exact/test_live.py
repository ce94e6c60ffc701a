"""Runs the tests of `tests/integration/live/test_live.py` on a cluster."""

import pytest

from tests.integration.live.test_live import *  # noqa: F403

pytestmark = pytest.mark.slow

# It takes the server back to an earlier state in one transaction, which a cluster refuses.
del test_a_reader_of_entries_that_the_server_lost_is_reset  # noqa: F821
