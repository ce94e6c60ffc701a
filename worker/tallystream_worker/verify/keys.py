"""Looks at every key of the namespace: names leftovers, and checks types, times to live, and registered periods."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import read
from tallystream.rules.parts import BLOOM
from tallystream.storage.keys import FIRST, FIRST_TOPIC, tag_of
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.rebuild.drop import KINDS, counter_keys
from tallystream_worker.rebuild.removed import RemovedPeriods
from tallystream_worker.snapshot.names import bucket_of, parse, removal_of
from tallystream_worker.verify.pages import pages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene

_NAME: Final = re.compile(r"\{([^}]*)\}:(?:l([0-9]+):)?(?:g([0-9]+):)?(.*)", re.DOTALL)
_OF_A_GENERATION: Final = frozenset(
    "ledger dead begun gone backfilled periods forgotten cut adopted resets".split()  # noqa: SIM905  # as they are named
)
_STRINGS: Final = (
    "live hottest begun gone backfilled total up unique sketch restore auditing verifying restoring confirmed"
)
_TYPES: Final = (
    dict.fromkeys(_STRINGS.split(), "string")
    | dict.fromkeys(("stream", "dead", "alerts", "rules"), "stream")
    | dict.fromkeys(("watched", "periods", "top"), "zset")
    | {"labels": "set"}
)
"""By the first part of a key's name in its partition, its type; every key of another kind but `seen` and `cut` is a
hash."""

_EXPIRING: Final = frozenset("hottest restore auditing verifying confirmed cut alerting".split())  # noqa: SIM905
"""The kinds of keys (the first part of the name in a partition) that may have a time to live."""

_OF_A_CUT: Final = {"cut": ("string",), "cut:before": ("list",), "cut:copied": ("set",)}
_OF_A_DROPPED_TOPIC: Final = frozenset(("seq", "live", "files"))
_OF_A_TOPIC: Final = frozenset(
    "stream seq copied holds live hottest dropped archive alerts alerting watched meta files auditing verifying".split()  # noqa: SIM905
)


def check(scene: Scene) -> None:
    """Report keys of the namespace that are not in use, as a limit of the verification, and three kinds of faults.

    The faults are keys of another type than the one that is needed, keys that the server will remove because another
    client has set a time to live, and keys of periods that nothing will remove: such a key is not registered in the
    sorted set `periods` of its partition. If earlier rules kept its period forever, it is reported as a limit instead.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    deployment = scene.deployment
    namespace, names = deployment.layout.namespace, Counter[str]()
    tags = {tag_of(number) for number in range(deployment.layout.partitions)}
    topics = {deployment.layout.topic: tags}
    for layout in filter(None, [deployment.kept_layout]):
        topics[layout.topic] = {tag_of(number) for number in range(layout.partitions)}
    generations = {FIRST, deployment.generation, *deployment.others, *deployment.layout.generations}
    if deployment.building is not None:
        generations.add(deployment.building)
    for page in pages(_all(scene, namespace)):
        with scene.client.pipeline(transaction=False) as pipeline:
            for key in page:
                pipeline.type(key)
                pipeline.pttl(key)
            replies = pipeline.execute()
        for key, raw, left in zip(page, replies[::2], replies[1::2], strict=True):
            type_, name = raw.decode(), key.decode(errors="replace").removeprefix(f"{namespace}:")
            if (kind := _leftover(name, topics, generations, deployment.moving)) is not None:
                names[kind] += 1
            elif type_ not in ("none", *_types_of(name)):
                scene.report.mistype(key.decode(errors="replace"), type_, is_replaced=_is_replaced(name))
            elif left >= 0 and not _may_expire(name):
                scene.report.find("keys.expiring", f"{key.decode(errors='replace')}: in {left / 1000:,.0f} s")
    for kind, count in sorted(names.items()):
        scene.report.limit("keys", f"{count:,} keys of no use: {kind}")
    _check_periods(scene)


def _all(scene: Scene, namespace: str) -> Iterator[bytes]:
    pattern = namespace.translate({ord(c): f"\\{c}" for c in "*?[]\\"})
    keys: Iterator[bytes] = scene.client.scan_iter(match=f"{pattern}:*", count=1000)
    yield from keys


def _may_expire(name: str) -> bool:
    """Return whether a key may have a time to live; `name` as in `_types_of`."""
    found = _NAME.fullmatch(name)
    return found is not None and found[4].partition(":")[0] in _EXPIRING


def _types_of(name: str) -> tuple[str, ...]:
    """Return the types that a key may have, such as `zset`.

    `name` is without the namespace and the colon after it. For a key that is not in use (see `_leftover`), the result
    has no meaning.
    """
    if name == "meta":
        return ("hash",)
    found = _NAME.fullmatch(name)
    rest = found[4] if found else ""
    kind = rest.partition(":")[0]
    if kind == "seen":
        return ("string",) if rest.endswith(BLOOM) else ("hash",)
    if kind == "cut":
        return _OF_A_CUT.get(rest, ("string", "hash", "zset"))  # a copy of a counter
    return (_TYPES.get(kind, "hash"),)


def _is_replaced(name: str) -> bool:
    """Return whether a rebuild replaces a key: a counter, or another key that a generation has for itself.

    `name` is the key without the namespace and the colon after it, such as `{p0.425}:g2:dead`; `False` for a name of
    another form. The ledger of the first generation is not replaced, because it is also that of the topic; neither are
    `cut` and `adopted`.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return False
    _, _, generation, rest = found.groups()
    kind = rest.partition(":")[0]
    if kind == "ledger":
        return generation is not None  # that of the first generation is also that of the topic
    return kind in KINDS or (kind in _OF_A_GENERATION and kind not in ("cut", "adopted"))


def _leftover(  # one line for each kind
    name: str, topics: dict[int, set[str]], generations: set[int], moving: int | None
) -> str | None:
    """Return a text on why a key is not in use, such as `topic 2, which is not kept`; `None` if it may be in use.

    A key whose name has no known form counts as not in use. If `topics` has several topics, every generation may be in
    use.

    Args:
        name: The key without the namespace and the colon after it.
        topics: By the numbers of the live topic and of the kept one, if there is one, the hash tags of its partitions.
        generations: The numbers of the first generation, the live one, kept ones, and one that a rebuild builds.
        moving: The topic that a repartition builds; `None` if none runs.
    """
    if name == "meta":
        return None
    found = _NAME.fullmatch(name)
    if found is None:
        return f"the name {name[:60]!r} has no partition"
    tag, topic, generation, rest = found.groups()
    number, kind = int(topic or FIRST_TOPIC), rest.partition(":")[0]
    is_of_dropped_topic = number not in topics and kind in _OF_A_DROPPED_TOPIC
    if kind in ("meta", "files", "rules", "restore", "confirmed") or number == moving or is_of_dropped_topic:
        return None
    if number not in topics:
        return f"topic {number}, which is not kept"
    if tag not in topics[number]:
        return f"partition {tag}, which topic {number} does not have"
    if kind == "restoring":
        return "a restore that was interrupted"
    if kind not in (_OF_A_GENERATION | KINDS if generation else _OF_A_GENERATION | KINDS | _OF_A_TOPIC):
        return f"the kind {kind[:60]!r} is not known"
    is_kept = generation is None or len(topics) > 1 or int(generation) in generations
    return None if is_kept else f"generation {generation}, which is not kept"


def _check_periods(scene: Scene) -> None:
    former, kept = _former_rules(scene), 0
    zones = {rules.zone for rules in former} - {scene.rules.zone}
    for _, keys in scene.streams():
        for page in pages(_periods(scene, keys, zones)):
            with scene.client.pipeline(transaction=True) as pipeline:
                for name, members in page:
                    pipeline.exists(keys.counters + name)
                    for member in members:
                        pipeline.zscore(keys.periods, member)
                replies = iter(pipeline.execute())
            for name, members in page:
                exists, *scores = islice(replies, 1 + len(members))
                if not exists or any(score is not None for score in scores):
                    continue
                if any(_is_kept_forever(name, rules) for rules in former):
                    kept += 1
                else:
                    scene.report.find("periods.missing", f"{keys.periods}: {keys.counters}{name}")
    if kept:
        scene.report.limit(
            "keys",
            f"{kept:,} keys are of periods that earlier rules kept forever, so they are never removed; tallystream "
            "rebuild counts them by the present rules",
        )


def _former_rules(scene: Scene) -> list[Rules]:
    """Return the rules in the record of their changes, present ones last, as far as this release can read them.

    Only about the last 1,000 changes are recorded. Empty if none is recorded.
    """
    found = []
    for _, fields in read_changes(scene.client, scene.deployment.layout):
        with suppress(ConfigurationError):
            found.append(read(fields[b"rules"]))
    return found


def _is_kept_forever(name: str, rules: Rules) -> bool:
    """Return whether rules keep the period of a counter forever; `False` if they lack its metric.

    Return `False` also for a leaderboard, a sketch, and any other key that `parse` does not find, and `True` if the
    label in the name is that of no period.

    Args:
        name: The key of a counter with a period, without the prefix. For a counter without one, such as a total, the
            result has no meaning.
        rules: The declared metrics.
    """
    found = parse(name, rules)
    bucket = None if found is None else bucket_of(found[0]) or name
    return bucket is not None and bucket.split(":", 2)[1] in rules.metric and removal_of(bucket, rules) is None


def _periods(scene: Scene, keys: PartitionKeys, zones: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Scan a partition; yield each key of a period that workers remove some day, and the members that may register it.

    The keys are without prefix; a key may come twice. The sorted set `periods` must have one of the members. A member
    is the end of the period in milliseconds since 1970, a space, and the key. The end of a day or a month depends on
    the zone at the time of the registration, which is that of the present rules or one of `zones`.

    Left out are leaderboards, and keys of a declared metric whose rule lacks their window, uniques or ids. Keys of a
    metric that is not declared are not left out.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command; raised while the pairs are iterated.
    """
    skipped, periods = len(keys.counters.encode()), RemovedPeriods(scene.rules)
    for key in counter_keys(scene.client, keys):
        name = key[skipped:].decode(errors="surrogateescape")
        found = parse(name, scene.rules) if not name.startswith("top:") else None
        if found is None or not periods.is_declared(name):
            continue
        bucket = bucket_of(found[0]) or (name if name.startswith("seen:") else None)
        if bucket is None or (removal := removal_of(bucket, scene.rules)) is None:
            continue
        others = (removal_of(bucket, scene.rules, zone) for zone in zones)
        ends = {removal[0], *(end for end, _ in filter(None, others))}
        yield name, [f"{end} {name}" for end in ends]
