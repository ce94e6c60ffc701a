"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.ingest.test_ingest_once import *  # noqa: F403

del test_a_lost_reply_counts_nothing_twice  # noqa: F821  # through a proxy, behind which is one server

pytestmark = pytest.mark.slow
