"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.runtime.test_supervisor import *  # noqa: F403

pytestmark = pytest.mark.slow
