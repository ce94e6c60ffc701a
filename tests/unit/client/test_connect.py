"""URLs of servers, as users write them."""

from __future__ import annotations

import pytest

from tallystream.client.bounded_pool import Bounded
from tallystream.client.cluster.client import ClusterClient
from tallystream.client.connect import connect, without_credentials
from tallystream.client.connections import (
    CountedConnection,
    CountedSentinelConnection,
    CountedSSLConnection,
    CountedUnixConnection,
)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("unix://tally-data/server.sock", "{here}/tally-data/server.sock"),
        ("unix://server.sock?db=1", "{here}/server.sock"),
        ("unix:///run/server.sock", "/run/server.sock"),
        ("unix://user:secret@/run/server.sock", "/run/server.sock"),
    ],
)
def test_a_socket_can_be_named_by_a_relative_path(url, path, tmp_path, monkeypatch):
    """A relative path is below the current directory, also if the directory's name has a space or a percent sign."""
    here = tmp_path / "my data %41"
    here.mkdir()
    monkeypatch.chdir(here)
    assert connect(url).connection_pool.connection_kwargs["path"] == path.format(here=here)


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://host:1", CountedConnection),
        ("rediss://host:1", CountedSSLConnection),
        ("unix:///server.sock", CountedUnixConnection),
        ("redis+sentinel://host:1/name", CountedSentinelConnection),
        ("redis+cluster://host:1", CountedConnection),
        ("rediss+cluster://host:1", CountedSSLConnection),
    ],
)
def test_every_connection_counts_its_replies(url, kind, most):
    """A connection with an unread reply is not used again, whatever the server; with `most`, the pool has a bound."""
    client = connect(url, most=most)
    if isinstance(client, ClusterClient):
        client = client._router.topology.node(("host", 1)).client
    pool = client.connection_pool
    assert issubclass(pool.connection_class, kind)
    assert isinstance(pool, Bounded) == (most is not None)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/2?db=3", "redis://host:1/2?db=3"),
        ("redis://user:secret@host:1", "redis://host:1"),
        ("redis://user:sec/ret@host:1", "redis://host:1"),
        ("redis://host:1?username=user&password=secret", "redis://host:1"),
        ("rediss://host:1?password=secret&ssl_ca_certs=a.crt", "rediss://host:1?ssl_ca_certs=a.crt"),
        ("unix://user:secret@/run/a@b.sock", "unix:///run/a@b.sock"),
        ("unix:///run/a@b.sock?db=1", "unix:///run/a@b.sock?db=1"),
        ("postgresql://user:secret@host/counts?password=secret", "postgresql://host/counts"),
        ("redis+cluster://user:secret@one:1,two:2", "redis+cluster://one:1,two:2"),
        ("tally.sqlite", "tally.sqlite"),
    ],
)
def test_a_url_is_shown_without_user_and_password(url, shown):
    """A message has neither the user nor the password of a URL, before the host or in the options."""
    assert without_credentials(url) == shown
