"""What is proved of a single server, proved of a cluster: the same tests, on another kind of server."""

import pytest

from tests.integration.test_replay_exact import *  # noqa: F403
from tests.integration.test_rules_exact import *  # noqa: F403
from tests.integration.test_sketches import *  # noqa: F403
from tests.integration.test_totals import *  # noqa: F403
from tests.integration.test_trim import *  # noqa: F403
from tests.integration.test_windows_read import *  # noqa: F403

pytestmark = pytest.mark.slow
