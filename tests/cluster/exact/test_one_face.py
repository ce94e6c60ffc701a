"""What is proved of a single server, proved of a cluster."""

import pytest

from tests.integration.reading.test_one_face import *  # noqa: F403

pytestmark = pytest.mark.slow
