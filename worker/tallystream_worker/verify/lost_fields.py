"""Names fields of hashes that were deleted or changed, as far as other fields or keys show this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import read
from tallystream.rules.parts import PARTS, SKETCHES, parts
from tallystream.storage.deployment_hash import parse_live, whole_number
from tallystream.storage.keys import FIRST, LEFT
from tallystream.storage.rule_changes import counted_numbers, read_changes
from tallystream_worker.rebuild.describe import counted_generations

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene

LOST_PART: Final = "To repair it, rebuild the counters (tallystream rebuild)"
"""What to do about a lost field of `PartitionKeys.forgotten`."""

_COUNTED: Final = "counted@"
_FORMER: Final = "!former:"
_COPIES: Final = "copies:"


def check(scene: Scene) -> None:
    """Report fields that are missing, although another field or key shows that they existed.

    Fields whose loss shows in figures are left out: the checks of the figures report these. Also report partitions that
    have counted a metric by rules that no worker has published.

    Raises:
        KeyLost, DeploymentChanged, ConfigurationError, DamagedValue: the deployment cannot be read again: see
            `Deployment.find`.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    _of_generations(scene)
    _of_the_root(scene)
    published = _published_parts(scene)
    for keys in scene.deployment.layout.keys:
        _of_rules(scene, keys, published)
        _of_the_ledger(scene, keys)
        _of_sketches(scene, keys)


def _of_generations(scene: Scene) -> None:
    """Report missing fields about generations: which one is live, and the rules of each other one and their number.

    A generation exists as long as it has a consumer group in a stream. Do nothing if another topic is live now.
    """
    client, meta = scene.client, scene.deployment.layout.meta
    counted = counted_generations(client, scene.deployment.layout)
    # Read the fields after the groups: a group exists only while they exist.
    now = Deployment.find(client, scene.deployment.layout.namespace)
    if now.layout.meta != meta:
        return
    if not now.was_rebuilt and client.hexists(meta, "newest"):
        live = {
            parse_live(value, keys.live)[0] for keys in now.layout.keys if (value := client.get(keys.live)) is not None
        }
        if live - {FIRST}:  # a restore begins with the first generation again, without the field
            number = str(max(live)) if len(live) == 1 else "the live generation"
            scene.report.lose_field(meta, "generation", f"Set it to {number}")
    for generation in sorted(counted - {now.generation, *now.layout.generations, *now.others}):
        scene.report.lose_field(
            meta,
            f"rules@{generation}",
            f"To repair it, remove generation {generation}, which is not live: tallystream rebuild --drop",
        )
    for generation in sorted(now.others.keys() - now.revisions.keys()):
        scene.report.lose_field(
            meta,
            f"revision@{generation}",
            f"Set it to the number of these rules in tallystream rules --history, or remove generation {generation}, "
            "which is not live: tallystream rebuild --drop",
        )


def _of_the_root(scene: Scene) -> None:
    """Report missing fields about topics: the kept one, its number of partitions, and the highest number of a topic.

    The field of the kept topic is missing if an earlier topic has a stream, but is neither the kept one nor one whose
    keys wait to be removed. The highest number is also reported if it is lower than that of the live topic.
    """
    deployment, root = scene.deployment, scene.deployment.layout.root
    if deployment.kept is not None and deployment.kept_layout is None:
        scene.report.lose_field(
            root,
            f"partitions@{deployment.kept}",
            f"Set it to the number of partitions that topic {deployment.kept} had",
        )
    left = (scene.client.hget(root, LEFT) or b"").decode().split()
    for layout in deployment.earlier_layouts:
        is_left = f"{layout.topic}:{layout.partitions}" in left or layout.topic == deployment.kept
        if not is_left and any(scene.client.exists(keys.stream) for keys in layout.keys):
            scene.report.lose_field(root, "kept", f"Set it to {layout.topic}")
    newest = whole_number(scene.client.hget(root, "newest-log") or b"0", "newest-log")
    if deployment.earlier and newest < deployment.layout.topic:
        scene.report.lose_field(root, "newest-log", f"Set it to {deployment.layout.topic} or a higher number")


def _of_rules(scene: Scene, keys: PartitionKeys, published: Mapping[str, Collection[str]]) -> None:
    """Report fields of `PartitionKeys.forgotten` that are missing or changed; do nothing if it has no field.

    If an event of a metric was counted, `!rules:<metric>` must exist: it has the parts of the rule by which the
    partition last counted the metric. Without it, a change of the rules leaves no mark, so reads would not state which
    buckets lack events. `!former:<metric>` and `copies:<metric>` are written together: if one exists, both must.

    `published` has, by metric, the parts that its rules have had: other parts were changed. The parts of a metric that
    is not in it may be any.
    """
    client = scene.client
    with client.pipeline(transaction=True) as pipeline:
        pipeline.hgetall(keys.ledger)
        pipeline.hgetall(keys.forgotten)
        ledger, fields = pipeline.execute()
    if not fields:
        return  # the whole key may be lost, which the check of lost keys reports
    names = {field.decode(errors="replace") for field in fields}
    counted = {
        name.decode(errors="replace").removeprefix(_COUNTED)
        for name, events in ledger.items()
        if name.startswith(_COUNTED.encode()) and int(events) > 0
    }
    wanted = {PARTS + metric for metric in counted}
    wanted |= {_FORMER + name.removeprefix(_COPIES) for name in names if name.startswith(_COPIES)}
    wanted |= {_COPIES + name.removeprefix(_FORMER) for name in names if name.startswith(_FORMER)}
    for name in sorted(wanted - names):
        scene.report.lose_field(keys.forgotten, name, LOST_PART)
    for raw, text in sorted(fields.items()):
        name = raw.decode(errors="replace")
        known = published.get(name.removeprefix(PARTS)) if name.startswith(PARTS) else None
        if known is not None and text.decode(errors="replace") not in known:
            scene.report.find("fields.changed", f"{keys.forgotten}: {name} is {text.decode(errors='replace')!r}")


def _published_parts(scene: Scene) -> dict[str, set[str]]:
    """Return, by metric that is declared, the texts of the parts of all its rules; empty if some rules are not known.

    They are not known if the first change of the rules is not recorded any more, if a partition has followed rules that
    are not recorded (the server has lost their change), or if this release cannot read one.
    """
    deployment = scene.deployment
    records = read_changes(scene.client, deployment.layout)
    if (records or deployment.revision) and (not records or records[0][1][b"number"] != b"1"):
        return {}
    recorded = {int(fields[b"number"]) for _, fields in records}
    if not counted_numbers(scene.client, deployment.layout, deployment.revision) <= recorded:
        return {}
    try:
        every = [scene.rules, *deployment.others.values(), *(read(fields[b"rules"]) for _, fields in records)]
    except ConfigurationError:
        return {}
    return {
        name: {parts(rules.metric[name], rules.zone) for rules in every if name in rules.metric}
        for name in scene.rules.metric
    }


def _of_the_ledger(scene: Scene, keys: PartitionKeys) -> None:
    """Report two fields of the topic's ledger that the next rebuild needs.

    One is the number of records of dropped dead letters, by which a loss of records is noticed: it is reported if it is
    lower than the number of records that exist; if it is missing, it counts as 0. The other is the number of events of
    plain entries (which another client added): it is reported if it is missing, the first generation is live, and the
    ledger states plain entries. Do nothing if the ledger does not exist.
    """
    found: Any
    with scene.client.pipeline(transaction=True) as pipeline:
        pipeline.hmget(keys.topic_ledger, "entries:dropped", "plain", "entries:plain", "entries:gated")
        pipeline.hlen(keys.dropped)
        (dropped, plain, entries, sentinel), found = pipeline.execute()
    if sentinel is None:
        return  # the whole key is lost, which the check of lost keys reports
    if found > int(dropped or 0):
        scene.report.lose_field(keys.topic_ledger, "entries:dropped", f"Set it to {found}")
    if keys.generation == FIRST and plain is None and int(entries or 0) > 0:
        scene.report.lose_field(keys.topic_ledger, "plain", f"Set it to {int(entries)}, one event for each plain entry")


def _of_sketches(scene: Scene, keys: PartitionKeys) -> None:
    """Report each metric with `max_subjects` that has a sketch, but no number of the subjects with an exact counter.

    A subject goes into the sketch only after this number has reached `max_subjects`. If the metric was in a sketch for
    another reason, it has the mark `SKETCHES`: then the number need not exist. Nothing is reported if the partition has
    not counted the metric with `max_subjects` yet, or if the ledger does not exist, which the check of lost keys
    reports.
    """
    for metric, rule in scene.rules.metric.items():
        if rule.max_subjects is None:
            continue
        field = f"subjects@{metric}"
        with scene.client.pipeline(transaction=True) as pipeline:
            pipeline.exists(keys.ledger)
            pipeline.exists(keys.sketch(metric))
            pipeline.hexists(keys.ledger, field)
            pipeline.hmget(keys.forgotten, PARTS + metric, f"{SKETCHES}:{metric}")
            has_ledger, has_sketch, is_there, (parts, is_split) = pipeline.execute()
        if has_ledger and has_sketch and not is_there and is_split is None and b"quota=" in (parts or b""):
            scene.report.lose_field(keys.ledger, field, f"Set it to {rule.max_subjects}")
