"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.dead_letters.test_store import *  # noqa: F403

pytestmark = pytest.mark.slow
