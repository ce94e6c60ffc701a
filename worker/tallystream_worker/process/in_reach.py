"""Runs a job in each partition, also if the nodes of some do not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tallystream.client.cluster.client import ClusterClient, node_of
from tallystream.client.error_text import text_of
from tallystream.client.replies import is_unreachable
from tallystream.errors import NodeUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys


def for_each_in_reach(
    client: redis.Redis,
    layout: Layout,
    job: Callable[[int, PartitionKeys], None],
    unreachable: Mapping[int, str] | None = None,
) -> None:
    """Run a job in each partition whose node of a cluster answers.

    After the first command that a node does not answer, no further partition of this node is tried: each would take
    until the timeout.

    Args:
        client: The connection to the partitions.
        layout: The partitions.
        job: Called with the number and the keys of each partition.
        unreachable: By number, the error of each partition that is known to be unreachable, and is not tried.

    Raises:
        NodeUnreachable: nodes did not answer; raised after all other partitions. It names the streams and the nodes.

    Any other error of the job is raised at once. So is the error of a server that is no cluster, and does not answer.
    """
    missing: dict[int, str] = dict(unreachable or {})
    silent = {node_of(client, layout.keys[number].stream): error for number, error in missing.items()}
    for number, keys in enumerate(layout.keys):
        if number in missing:
            continue
        node = node_of(client, keys.stream)
        if node in silent:
            missing[number] = silent[node]
            continue
        try:
            job(number, keys)
        except RedisError as error:
            if not is_unreachable(error) or not isinstance(client, ClusterClient):
                raise
            missing[number] = silent[node] = text_of(error)
    if missing:
        nodes: dict[str, str | None] = {
            layout.keys[number].stream: node_of(client, layout.keys[number].stream) for number in sorted(missing)
        }
        raise NodeUnreachable(nodes, next(iter(missing.values())))
