"""The statistics of the server are read from replies of which some may be errors."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tallystream.storage.keys import Layout
from tallystream_worker.service.server_stats import query_server_stats

REFUSED = ResponseError("NOPERM this user has no permissions")


def test_figures_that_may_not_be_read_are_left_out():
    """If the user may not read the figures of the server and the streams, they are left out."""
    query = query_server_stats(Layout(1))
    stats = query.parse([*[REFUSED] * (len(query.commands) - 1), [b"5", None, None, None, None, None]])
    assert (stats.memory_used, stats.workers, stats.stream_entries, stats.snapshot) == (None, 0, {}, 5.0)


def test_a_refused_read_of_the_last_snapshot_is_its_error():
    """If the last snapshot cannot be read, the query raises the error of the server."""
    query = query_server_stats(Layout(1))
    with pytest.raises(ResponseError, match="NOPERM"):
        query.parse([REFUSED] * len(query.commands))
