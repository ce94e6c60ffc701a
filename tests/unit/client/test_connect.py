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
from tallystream.errors import ConfigurationError


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
        ("redis://host:1?password=sec@ret", "redis://host:1"),
        ("redis://host:1?db=3&password=sec@ret&username=a@b", "redis://host:1?db=3"),
        ("redis://user:se@cret@host:1?password=sec@ret", "redis://host:1"),
        ("redis://host:1?p%61ssword=secret", "redis://host:1"),
        ("rediss://host:1?ssl_password=secret", "rediss://host:1"),
        ("redis://user:sec?ret@host:1", "redis://host:1"),
        ("redis://user:sec?r=et@host:1?db=2", "redis://host:1?db=2"),
        ("redis://user:sec?ret@host:1?password=sec@ret", "redis://..."),
        ("redis+cluster://one:1,two:2?password=sec@ret", "redis+cluster://one:1,two:2"),
        ("unix://user:secret@relative/path", "unix://relative/path"),
        ("unix://user:secret@/run/a.sock?db=1", "unix:///run/a.sock?db=1"),
        ("unix:///run/a.sock?password=sec@ret", "unix:///run/a.sock"),
        ("unix://user:sec?ret@relative/path", "unix://..."),
    ],
)
def test_a_url_is_shown_without_user_and_password(url, shown):
    """A message has neither the user nor the password of a URL, before the host or in the options."""
    assert without_credentials(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:sec/ret@host:1",
        "redis://user:sec?ret@host:1",
        "redis://user:sec#ret@host:1",
        "redis://us[er:sec/ret@host:1",
        "redis://user:sec\u2100ret@host:1",
        "redis+cluster://user:sec/ret@host:1",
        "redis+cluster://user:sec?ret@host:1",
        "redis+cluster://host:1?password=sec@ret&db=x",
        "redis+sentinel://user:sec/ret@host:1/name",
        "redis://host:1?password=sec@ret&db=x",
        "http://user:secret@host:1",
    ],
)
def test_an_error_has_no_part_of_a_password(url):
    """The error for a URL that cannot be parsed has no part of the password, also if it is not encoded."""
    with pytest.raises(ConfigurationError) as raised:
        connect(url)
    text = str(raised.value).replace("socket", "").replace("+sentinel", "")
    assert "sec" not in text
    assert "ret" not in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:65536",
        "redis+cluster://one:1,two:65536",
        "redis+sentinel://one:1,two:65536/name",
        "redis+sentinel://one:0/name",
    ],
)
def test_a_port_that_is_too_large_is_refused(url):
    """The port of every host is checked, not only that of the first one."""
    with pytest.raises(ConfigurationError, match="port"):
        connect(url)


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://host:1?bogus=1", "bogus"),
        ("redis://host:1?db=1&ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("unix:///server.sock?socket_keepalive=1", "socket_keepalive"),
        ("redis+cluster://host:1?bogus=1", "bogus"),
        ("rediss+cluster://host:1?bogus=1", "bogus"),
    ],
)
def test_an_unknown_option_is_refused(url, name, most):
    """An option that a connection of this kind does not have is refused by `connect`, not by the first command."""
    with pytest.raises(ConfigurationError, match=f"has no option '{name}'"):
        connect(url, most=most)


def test_a_wrong_value_of_an_option_is_refused():
    """An option with a value that no connection can have is refused by `connect`."""
    with pytest.raises(ConfigurationError, match="bogus"):
        connect("rediss://host:1?ssl_cert_reqs=bogus")
