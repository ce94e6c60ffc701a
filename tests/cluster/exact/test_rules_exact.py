"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.counting.test_rules_exact import *  # noqa: F403

pytestmark = pytest.mark.slow
