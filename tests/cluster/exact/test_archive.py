"""Runs the tests of `tests/integration/archive/test_archive.py` on a cluster."""

import pytest

from tests.integration.archive.test_archive import *  # noqa: F403

pytestmark = pytest.mark.slow
