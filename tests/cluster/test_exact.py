"""What is proved of one server, proved of a cluster: the same tests, on another kind of server."""

from tests.integration.test_aio import *  # noqa: F403
from tests.integration.test_append import *  # noqa: F403
