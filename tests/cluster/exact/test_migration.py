"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.repartition.test_migration import *  # noqa: F403

pytestmark = pytest.mark.slow
