"""Names keys that were deleted or evicted, as far as other keys show that they existed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystream.storage.keys import FIRST
from tallystream.storage.sentinels import lost_key
from tallystream_worker.rebuild.drop import counter_keys
from tallystream_worker.snapshot.names import parse
from tallystream_worker.verify.pages import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene

_UNLESS_LOST = ("limit", "seen")
"""Kinds of keys that exist whenever they are registered in `PartitionKeys.periods`: see `rules/forget_periods.lua`."""


def check(scene: Scene) -> None:
    """Report keys that do not exist, or lack records, although another key shows that they existed.

    If a partition has lost a sentinel (see `lost_key`), only the first one that it lacks is reported, and the report
    notes that lost keys can explain other findings.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    deployment, client = scene.deployment, scene.client
    layout = deployment.layout
    lost: list[str] = []
    if deployment.revision and not client.exists(layout.rule_changes):
        lost.append(layout.rule_changes)
    if not client.exists(layout.files) and any(_has_sources(client, keys) for keys in layout.keys):
        lost.append(layout.files)
    for keys in layout.keys:
        if (sentinel := lost_key(client, keys)) is not None:
            lost.append(sentinel)
            scene.report.explain("keys.lost")
        lost += _hashes(client, keys, is_copying=deployment.kept is not None)
        lost += _outbox(client, keys)
        lost += _periods(scene, keys)
        lost += _labels(scene, keys)
    for key in lost:
        scene.report.lose(key)


def _has_sources(client: Any, keys: PartitionKeys) -> bool:
    """Return whether the sequences have the record of an ingested file."""
    return next(iter(client.hscan_iter(keys.sequences, match="file:*", count=1000)), None) is not None


def _hashes(client: Any, keys: PartitionKeys, *, is_copying: bool) -> Iterator[str]:
    """Yield the keys of a partition that are gone, or have too few records, by what the ledgers state.

    These are the marks of copied entries (only if `is_copying`: the topic before is kept), the dropped dead letters,
    the removed periods, and the places of changed rules. In a later generation, also yield its `begun` and `gone` if
    they do not exist.
    """
    with client.pipeline(transaction=True) as pipeline:
        pipeline.hmget(keys.topic_ledger, "entries:copied", "entries:dropped")
        pipeline.hmget(keys.ledger, "counted", "entries:adopted")
        pipeline.exists(keys.copied)
        pipeline.hlen(keys.dropped)
        pipeline.exists(keys.forgotten)
        pipeline.exists(keys.begun)
        pipeline.exists(keys.gone)
        pipeline.hlen(keys.adopted)
        (copied, dropped), (counted, adopted), *replies = pipeline.execute()
    has_copied, records, has_forgotten, has_begun, has_gone, places = replies
    if places < int(adopted or 0):
        yield keys.adopted
    if is_copying and copied and not has_copied:
        yield keys.copied
    if records < int(dropped or 0):
        yield keys.dropped
    if int(counted or 0) > 0 and not has_forgotten:
        yield keys.forgotten
    if keys.generation != FIRST:
        yield from [keys.begun] * (not has_begun)
        yield from [keys.gone] * (not has_gone)


def _outbox(client: Any, keys: PartitionKeys) -> Iterator[str]:
    """Yield the outbox of a partition if it does not exist, although an alert has a state there.

    Each state was written together with a notification, and the outbox stays when it is empty.
    """
    pattern = keys.prefix.translate({ord(c): f"\\{c}" for c in "*?[]\\"}) + "alerting:*"
    fires = next(iter(client.scan_iter(match=pattern, count=1000)), None) is not None
    if fires and not client.exists(keys.outbox):
        yield keys.outbox


def _periods(scene: Scene, keys: PartitionKeys) -> Iterator[str]:
    """Yield the keys of ids and limits that are registered in the partition's `periods`, but do not exist."""
    for page in pages(_registered(scene.client, keys)):
        with scene.client.pipeline(transaction=True) as pipeline:
            for member in page:
                pipeline.exists(keys.counters.encode() + member.partition(b" ")[2])
                pipeline.zscore(keys.periods, member)
            replies = pipeline.execute()
        for member, exists, score in zip(page, replies[::2], replies[1::2], strict=True):
            if not exists and score is not None:
                yield keys.counters + member.partition(b" ")[2].decode(errors="replace")


def _registered(client: Any, keys: PartitionKeys) -> Iterator[bytes]:
    for member, _ in client.zscan_iter(keys.periods, count=1000):
        if member.partition(b" ")[2].partition(b":")[0].decode(errors="replace") in _UNLESS_LOST:
            yield member


def _labels(scene: Scene, keys: PartitionKeys) -> set[str]:
    """Return the keys of the sets of labels that lack the label of an existing bucket or period of votes."""
    lost = set()
    for page in pages(_labelled(scene, keys)):
        with scene.client.pipeline(transaction=True) as pipeline:
            for key, name, label in page:
                pipeline.exists(key)
                pipeline.sismember(name, label)
            replies = pipeline.execute()
        for (_, name, _), exists, is_member in zip(page, replies[::2], replies[1::2], strict=True):
            if exists and not is_member:
                lost.add(name)
    return lost


def _labelled(scene: Scene, keys: PartitionKeys) -> Iterator[tuple[bytes, str, str]]:
    """Yield, for each bucket of a window and each hash of votes: its key, the key of a set of labels, and a label.

    The set is that of its metric (`PartitionKeys.labels`), and must have the label.
    """
    skipped = len(keys.counters.encode())
    for key in counter_keys(scene.client, keys):
        name = key[skipped:].decode(errors="surrogateescape")
        found = parse(name, scene.rules) if not name.startswith("top:") else None
        if found is None:
            continue
        group = found[0]
        if group[0] == "windows":
            yield key, keys.labels(group[2]), f"{group[1]}:{group[3]}"
        elif group[0] == "votes":
            yield key, keys.labels(group[1]), f"once:{group[2]}"
