"""Runs the tests of `tests/integration/rebuild/test_audit.py` on a cluster."""

import pytest

from tests.integration.rebuild.test_audit import *  # noqa: F403

pytestmark = pytest.mark.slow

del test_an_audit_whose_result_cannot_be_recorded_is_not_repeated_at_once  # noqa: F821  # it takes a right on one node
