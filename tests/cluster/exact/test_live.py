"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.live.test_live import *  # noqa: F403

pytestmark = pytest.mark.slow
