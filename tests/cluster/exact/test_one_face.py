"""Runs the tests of `tests/integration/reading/test_one_face.py` on a cluster."""

import pytest

from tests.integration.reading.test_one_face import *  # noqa: F403

pytestmark = pytest.mark.slow
