"""Runs the tests of `tests/integration/rebuild/test_audit.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_audit import *  # noqa: F403

pytestmark = pytest.mark.slow
