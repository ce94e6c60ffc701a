"""Checks that the description of the deployment and the live generations of its partitions agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.storage.deployment_hash import parse_live, whole_number
from tallystream.storage.keys import FIRST, tag_of

if TYPE_CHECKING:
    from tallystream_worker.verify.scene import Scene

_NUMBERS: Final = ("revision", "newest-revision", "newest", "generation", "building")
"""The fields of the description that have the numbers of rules and of generations."""


def check(scene: Scene) -> None:
    """Report wrong hash tags, partitions whose live generation is not the deployment's, and closed partitions.

    The stored hash tags are wrong if they are not those that belong to the number of partitions. Also report numbers of
    rules or generations that are missing or too low, and missing marks of spread metrics. If nothing is wrong, the
    number of partitions, the topic and the generation are added as proved.

    A rebuild that is not finished explains other generations, and a repartition explains closed partitions: then these
    are not reported. Such an operation is a limit of the report, and so is a kept generation or topic. A partition that
    has lost the key of its live generation is left out: the check of lost keys reports it.

    Raises:
        DamagedValue: the live generation of a partition, or a field of the description, has another form than
            tallystream writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    deployment, report, client = scene.deployment, scene.report, scene.client
    layout, faults_before = deployment.layout, report.faults
    counting = 0
    for keys in layout.keys:
        raw = client.get(keys.live)
        if raw is None:
            continue
        live, is_open = parse_live(raw, keys.live)
        words = raw.split()
        if live == deployment.generation and words[1:] and words[1].isdigit():
            counting = max(counting, int(words[1]))
        if live != deployment.generation and deployment.building is None:
            report.find(
                "deployment.generations_differ",
                f"{keys.live}: generation {live}, but {layout.meta} has {deployment.generation}",
            )
        if not is_open and deployment.moving is None:
            report.find("deployment.closed", f"{keys.live}")
    tags = client.hget(layout.meta, "tags") or b""
    if tags.decode().split() != [tag_of(number) for number in range(layout.partitions)]:
        report.find("deployment.tags_differ", f"{layout.meta}: {layout.partitions} partitions, and the tags {tags!r}")
    _check_numbers(scene, counting)
    for metric in sorted(deployment.rules.spread - deployment.spread):
        report.find("deployment.spread_missing", f"{layout.meta}: spread@{metric}")
    for generation in sorted(deployment.dropping):
        report.limit(
            "deployment",
            f"generation {generation}, which is removed in part: remove the rest with tallystream rebuild --drop",
        )
    for generation in sorted(deployment.others.keys() - {deployment.building} - deployment.dropping):
        report.limit(
            "deployment",
            f"counters of generation {generation}, which is kept for tallystream rebuild --undo: verify again after an "
            "undo",
        )
    if deployment.kept is not None:
        report.limit("deployment", f"counters of topic {deployment.kept}, which is kept and not live")
    if deployment.building is not None and deployment.building not in deployment.dropping:
        report.limit(
            "deployment",
            f"generation {deployment.building}, which a rebuild has not finished: run tallystream rebuild again, or "
            "give it up with tallystream rebuild --drop",
        )
    if deployment.moving is not None:
        report.limit(
            "deployment",
            f"topic {deployment.moving}, which a repartition has not finished: run tallystream rebuild --partitions N "
            "again, or give it up with tallystream rebuild --drop",
        )
    report.prove(
        "deployment",
        f"{layout.partitions} partitions, topic {layout.topic}, generation {deployment.generation}",
        faults_before=faults_before, partitions=layout.partitions, topic=layout.topic, generation=deployment.generation,
    )  # fmt: skip


def _check_numbers(scene: Scene, counting: int) -> None:
    """Report `revision`, `newest-revision` and `newest` in the description, if they are lower than a number in use.

    These are the numbers of the present rules, of the newest rules and of the newest generation. A missing one counts
    as 0 (`newest`: 1), so it is not reported if no higher number is in use. `revision` is also reported if it is 0
    although changes of the rules are recorded.

    `counting` is the highest number of rules by which a partition counts the live generation; 0 for none. It must be
    read before, because rules are stored before a partition is counted by them.

    Raises:
        DamagedValue: a field has another form than tallystream writes.
    """
    deployment, layout = scene.deployment, scene.deployment.layout
    with scene.client.pipeline(transaction=True) as pipeline:
        pipeline.hmget(layout.meta, _NUMBERS)
        pipeline.xrange(layout.rule_changes)
        found, records = pipeline.execute()
    values = zip(found, _NUMBERS, strict=True)
    revision, highest, newest, generation, building = (whole_number(value or b"0", name) for value, name in values)
    recorded = [int(fields[b"number"]) for _, fields in records]
    if revision < counting or (recorded and not revision):
        least = max(counting, *recorded[-1:], 1)
        scene.report.find("deployment.numbers_differ", f"{layout.meta}: revision must be {least}")
    if highest < (most := max(0, counting, revision, *recorded, *deployment.revisions.values())):
        scene.report.find("deployment.numbers_differ", f"{layout.meta}: newest-revision must be {most} or higher")
    if max(newest, FIRST) < (most := max(generation, building, *deployment.others, FIRST)):
        scene.report.find("deployment.numbers_differ", f"{layout.meta}: newest must be {most} or higher")
