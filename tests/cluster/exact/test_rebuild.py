"""Runs the tests of `tests/integration/rebuild/test_rebuild.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_rebuild import *  # noqa: F403

pytestmark = pytest.mark.slow
