"""A URL of a snapshot that cannot be used is named in an error, before any connection is made."""

from __future__ import annotations

import pytest

from tallystream.errors import ConfigurationError
from tallystream_worker.snapshot.database import Database


@pytest.mark.parametrize("url", ["postgresql://u:p@h:abc/x", "postgresql://u:p@[::1/x", "nothing://x"])
def test_a_url_that_cannot_be_used(url):
    """The error names the setting and the forms that can be used."""
    with pytest.raises(ConfigurationError, match=r"^snapshot\.url cannot be used: "):
        Database(url)
