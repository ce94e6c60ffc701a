"""Runs a job in each partition, also if the nodes of some do not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.cluster.client import ClusterClient
from tallystream.client.error_text import text_of
from tallystream.client.replies import is_unreachable
from tallystream.errors import NodeUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys


def for_each_in_reach(client: redis.Redis, layout: Layout, job: Callable[[int, PartitionKeys], None]) -> None:
    """Run a job in each partition; in a cluster, leave out partitions whose node does not answer.

    If a node does not answer a job, later partitions of this node are not tried: each would take until the timeout.

    Args:
        client: The connection to the partitions.
        layout: The partitions. Those in `unreachable`, and the others on the same nodes, are not tried, and count as
            partitions of nodes that did not answer.
        job: Called with the number and the keys of each partition.

    Raises:
        NodeUnreachable: nodes did not answer; raised after all other partitions. It names the streams and the nodes.

    Any other error of the job is raised at once. If the server is no cluster and does not answer, this error is also
    raised at once.
    """
    missing: dict[str, str | None] = {}
    locate = client.node_of if isinstance(client, ClusterClient) else lambda _: None
    silent = {locate(layout.keys[number].stream) for number in layout.unreachable}
    problem = "a node did not answer"
    for number, keys in enumerate(layout.keys):
        node = locate(keys.stream)
        if node not in silent and number not in layout.unreachable:
            try:
                job(number, keys)
                continue
            except RedisError as error:
                if not is_unreachable(error) or not isinstance(client, ClusterClient):
                    raise
                problem = text_of(error)
                silent.add(node)
        missing[keys.stream] = node
    if missing:
        raise NodeUnreachable(missing, problem)
