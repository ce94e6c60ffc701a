"""URLs of servers, as users write them."""

from __future__ import annotations

import pytest

from tallystream.client.connect import connect


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
