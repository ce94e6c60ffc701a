"""Notices that a node failed over or restarted between two moments: it may lack what was written between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.client.cluster.client import node_of
from tallystream.errors import StreamError

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import Layout


AGAIN: Final = "run the command again"
"""What to do after most steps that a server may have lost."""


class FailedOver(StreamError):
    """Raised if a node failed over or restarted, or a slot moved, during a write: the node may lack a part of that."""


class FailoverWatch:
    """Watches the nodes of some topics from its construction on.

    A server that is promoted, or that starts, gets a new replication ID. So if a node has the same ID at two moments,
    it has everything that was written to it between them. A slot that moves to another node counts as a failover.

    Args:
        client: The server.
        layouts: The topics.

    Raises:
        redis.RedisError: a server does not reply, or rejects the command.
    """

    def __init__(self, client: redis.Redis, *layouts: Layout) -> None:
        self._client = client
        self._names = list(dict.fromkeys(name for layout in layouts for name in layout.confirmed))
        self._before = self._ids()

    def ensure_none(self, written: str, remedy: str = AGAIN) -> None:
        """Raise an error if a node failed over or restarted, or a slot moved to another node, since the construction.

        Args:
            written: What was written since then, as the beginning of the error message: `the events are copied`.
            remedy: What to do, as the end of the error message.

        Raises:
            FailedOver: this has happened, so a node may lack a part of what was written.
            redis.RedisError: a server does not reply, or rejects the command.
        """
        for name, before, now in zip(self._names, self._before, self._ids(), strict=True):
            if before != now:
                raise FailedOver(
                    f"{written}, but meanwhile the server {node_of(self._client, name)} failed over or restarted, or a "
                    f"slot moved to it. It may lack a part of that: {remedy}"
                )

    def _ids(self) -> list[str]:
        """Return the replication ID of the node of each key in `_names`, in their order; ask each node once."""
        with self._client.pipeline(transaction=False) as pipeline:
            for name in self._names:
                pipeline.exists(name)  # so that the client knows the node of each slot that has moved
            pipeline.execute()
        nodes = [node_of(self._client, name) for name in self._names]
        asked = dict(zip(nodes, self._names, strict=True))
        with self._client.pipeline(transaction=False) as pipeline:
            for name in asked.values():
                pipeline.info("replication")
                pipeline.exists(name)  # In a cluster, INFO is sent to the node of the key that follows it.
            about = pipeline.execute()[::2]
        ids = {node: each["master_replid"] for node, each in zip(asked, about, strict=True)}
        return [ids[node] for node in nodes]
