"""Has the queries for the deployment, which write nothing, and a cache that keeps the deployment for a second."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.error_text import text_of
from tallystream.client.replies import is_unreachable
from tallystream.client.server_time import parse_time
from tallystream.deployment import Deployment
from tallystream.errors import BRING_BACK, DeploymentDeleted, NodeUnreachable
from tallystream.reading.query import Query, raise_on_error
from tallystream.rules.parts import PARTS, lacking
from tallystream.storage.deployment_hash import live_topic
from tallystream.storage.keys import DEFAULT_PARTITIONS, FIRST_TOPIC, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.exceptions import RedisError

    from tallystream.reading.reach import Locate
    from tallystream.rules.metrics import Rules

DEPLOYMENT_AGE: Final = 1.0
"""Seconds after which the deployment is read again: its published rules and removed buckets.

Each read notices another live generation or topic, and reads the deployment again; see `tallystream.reading.replaced`.
"""


def query_deployment(partitions: int | None, namespace: str) -> Query[Deployment]:
    """Return a query for the deployment in a namespace, with its live generations, `clock_ahead` and `removed`.

    Before a deployment is stored, the answer has `partitions` partitions (4 if `partitions` is `None`), no rules and no
    `clock_ahead`, and `is_stored` is false. `partitions` is the number that the caller expects; `None` accepts any
    stored number.

    Raises:
        ConfigurationError: `partitions` is not 1 to 1,024. Raised by the query's `parse`: the stored number of
            partitions is not `partitions`, or this release cannot read the stored layout version or rules.
        KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read; raised by
            the query's `parse`.
        DeploymentChanged: there is no description of a deployment, although the first partition of the first topic has
            a stream, or figures in its ledger; or a restore has not finished. Raised by the query's `parse`.
        DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes; raised
            by the `parse` of the query, or of a further query that it returns.
    """
    unstored = Deployment(Layout(DEFAULT_PARTITIONS if partitions is None else partitions, namespace))
    first = unstored.layout.keys[0]  # these keys have the same names for every number of partitions

    def parse(replies: list[Any]) -> Deployment | Query[Deployment]:
        root, ahead = raise_on_error(replies[0]), _clock_ahead(raise_on_error(replies[1]))
        if not root:
            return Query([("EXISTS", first.stream), ("HLEN", first.ledger)], missing)
        live = live_topic(root, namespace)
        if live.topic == FIRST_TOPIC:
            return found(root, root, ahead)
        return Query([("HGETALL", live.meta)], lambda replies: found(raise_on_error(replies[0]), root, ahead))

    def missing(replies: list[Any]) -> Deployment:
        has_stream, fields = (raise_on_error(reply) for reply in replies)
        if has_stream or fields > 1:  # the first field is written shortly before the deployment is stored
            raise _deleted(unstored.layout)
        return unstored

    def found(fields: dict[bytes, bytes], root: dict[bytes, bytes], ahead: float) -> Query[Deployment]:
        return query_partitions(replace(Deployment.parse(fields, partitions, namespace, root), clock_ahead=ahead))

    return Query([("HGETALL", unstored.layout.root), ("TIME",)], parse)


def without_meta(latest: Deployment | None, namespace: str, error: RedisError, locate: Locate) -> Query[Deployment]:
    """Return a query that reads the deployment again, as far as possible, while the node of its description is down.

    Call it after the attempt to read the description has failed because its node does not answer; the kind of `error`
    is not checked here. The answer is a copy of `latest`, with what the partitions on other nodes store now: see
    `query_partitions`.

    Args:
        latest: The deployment that was read last; `None` if none was.
        namespace: The namespace.
        error: The error of the attempt to read the description; it is used only for the text of `NodeUnreachable`.
        locate: Finds the node of the description.

    Raises:
        NodeUnreachable: `latest` is `None`, so that it is not known which partitions there are; raised by this call,
            before there is a query.
        DamagedValue: the live generation of a partition has a value that tallystream never writes; raised by the
            query's `parse`.
    """
    if latest is None:
        root = Layout(namespace=namespace).root
        raise NodeUnreachable({root: locate(root)}, text_of(error)) from error
    return query_partitions(latest)


def _deleted(layout: Layout) -> DeploymentDeleted:
    """Return the error whose text states that the description of a deployment, `layout.root`, was deleted."""
    return DeploymentDeleted(
        f"{layout.root} was deleted, so the counters cannot be read. If the server has lost its data, {BRING_BACK}"
    )


def _clock_ahead(reply: Any) -> float:
    """Return by how many seconds the server's clock, in its reply to TIME, is ahead of this host's monotonic clock."""
    return parse_time(reply) / 1e6 - time.monotonic()


def query_partitions(deployment: Deployment) -> Query[Deployment]:
    """Return a query whose answer is a copy of a deployment, with what its partitions store about it.

    This is the live generation of each partition, if there was a rebuild, and `removed` (see `removed_ends`). A
    partition that has lost its key `live` gets `deployment.generation`. The partitions whose node does not answer are
    the `unreachable` ones of the copy. The query's `parse` raises `DamagedValue` if a live generation has a value that
    tallystream never writes.
    """
    fresh = replace(deployment, unreachable={})
    return _query_live(fresh).then(_query_removed) if deployment.was_rebuilt else _query_removed(fresh)


def _query_live(deployment: Deployment) -> Query[Deployment]:
    def parse(replies: list[Any]) -> Deployment:
        found, unreachable = _reached(replies)
        return deployment.with_live([found.get(number) for number in range(len(replies))]).lacking(unreachable)

    return Query([("GET", keys.live) for keys in deployment.layout.keys], parse)


def _query_removed(deployment: Deployment) -> Query[Deployment]:
    def parse(replies: list[Any]) -> Deployment:
        hashes, unreachable = _reached(replies)
        return replace(deployment, removed=removed_ends(hashes.values(), deployment.declared)).lacking(unreachable)

    return Query([("HGETALL", keys.forgotten) for keys in deployment.layout.keys], parse)


def _reached(replies: list[Any]) -> tuple[dict[int, Any], dict[int, str]]:
    """Split the replies of all partitions into those that arrived and the errors of unreachable partitions.

    Args:
        replies: One reply for each partition, in the order of their numbers; errors are among them.

    Returns:
        By number of the partition, the replies; and, by number, the texts of the errors which show that the node of the
        partition cannot execute commands (see `is_unreachable`). Each partition is in one of the two.

    Raises:
        redis.RedisError: a reply is an error of another kind, such as a wrong password.
    """
    unreachable = {number: text_of(reply) for number, reply in enumerate(replies) if is_unreachable(reply)}
    return {n: raise_on_error(reply) for n, reply in enumerate(replies) if n not in unreachable}, unreachable


def removed_ends(forgotten: Iterable[Mapping[bytes, bytes]], rules: Rules | None) -> dict[str, int]:
    """Return, by kind and metric (`hour:view`), the latest time in the given hashes, in seconds since 1970, rounded up.

    `forgotten` has the hash `PartitionKeys.forgotten` of each partition, whose times are in milliseconds. The kinds are
    those of removed periods, and those of the marks of changed rules: see `tallystream.rules.parts`. Fields that begin
    with `!` have no kind, and are left out. If a partition has last counted a metric by another rule than the declared
    one, the marks that this change may cause (see `lacking`) are 2^53, later than every time; the other marks are as
    stored. If `rules` is `None`, all marks are as stored.
    """
    removed: dict[str, int] = {}
    for ends in forgotten:
        for raw, end in ends.items():
            name = raw.decode()
            if not name.startswith("!"):
                removed[name] = max(-(-int(end) // 1000), removed.get(name, 0))
            elif rules is not None and (metric := name.removeprefix(PARTS)) != name and metric in rules.metric:
                for kind in lacking(end.decode(), rules.metric[metric], rules.zone):
                    removed[f"{kind}:{metric}"] = 2**53
    return removed


class DeploymentCache:
    """Keeps the deployment that the caller has read, for `DEPLOYMENT_AGE` (1) seconds; reads nothing itself.

    `get` returns the cached deployment. If it returns `None`, the caller must read the deployment, with the number of
    partitions that `expected` returns, and pass it to `put`.
    """

    def __init__(self) -> None:
        self._deployment: Deployment | None = None
        self._until = 0.0

    def get(self) -> Deployment | None:
        """Return the cached deployment; `None` if the caller must read it, because none is cached or it is too old."""
        return self._deployment if time.monotonic() < self._until else None

    @property
    def latest(self) -> Deployment | None:
        """The deployment that was cached last, however old it is; `None` if none was."""
        return self._deployment

    def lose(self, deployment: Deployment) -> None:
        """Add the unreachable partitions of `deployment` to the cached deployment, and keep its age.

        Do nothing if none is cached, or if the cached one has another layout.
        """
        if self._deployment is not None and self._deployment.layout == deployment.layout:
            self._deployment = self._deployment.lacking(deployment.unreachable)

    def expected(self, partitions: int | None) -> int | None:
        """Return the number of partitions that the next read must find: `partitions`, or `None` for any number.

        After the first deployment was cached, any number is accepted: a repartition of a live system may change it.
        """
        return partitions if self._deployment is None else None

    def put(self, deployment: Deployment) -> Deployment:
        """Cache the given deployment for `DEPLOYMENT_AGE` seconds if it has rules, and return it.

        If it has no rules, the cache does not change, because rules may be published soon.

        Raises:
            DeploymentChanged: it is not stored on the server (`is_stored`), although one was cached before.
        """
        if not deployment.is_stored and self._deployment is not None:
            raise _deleted(deployment.layout)
        if deployment.declared is not None:
            self._deployment = deployment
            self._until = time.monotonic() + DEPLOYMENT_AGE
        return deployment
