"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.alerts.test_alerts import *  # noqa: F403

pytestmark = pytest.mark.slow
