"""A connection to a node on which a reply is still to come never answers the next command of a cluster client."""

from __future__ import annotations

import contextlib

import pytest

from tallystream.client.cluster.slots import slot_of
from tallystream.client.connect import connect
from tests.integration.client.test_unread_replies import SLOW, interrupt

pytestmark = pytest.mark.slow


def test_an_interrupted_pipeline_answers_no_later_command(server, cluster):
    """If Ctrl-C comes between the replies of several nodes to a pipeline, each later command gets its own reply."""
    here = cluster.owner(SLOW[1])
    there = next(key for key in map("{{{}}}:b".format, range(100)) if cluster.owner(key) != here)
    assert slot_of(there) != slot_of(SLOW[1])
    with contextlib.closing(connect(server.url)) as client:
        for key in ("{unread}:b", there):
            client.set(key, key)
        for node in client._router.topology.nodes:  # replies are parsed by the client of a node
            node.client.response_callbacks["STRLEN"] = interrupt
        with client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("STRLEN", "{unread}:b").execute_command(*SLOW).get(there)
            with pytest.raises(KeyboardInterrupt):
                pipeline.execute()
        assert [client.get("{unread}:b"), client.get(there)] == [b"{unread}:b", there.encode()]
