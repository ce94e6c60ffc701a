"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.counting.test_apply import *  # noqa: F403

del test_a_lost_reply_counts_once, test_a_lost_request_counts_once  # noqa: F821  # through a proxy, behind which is one server

pytestmark = pytest.mark.slow
