"""Checks that the description of the deployment and the live generations of its partitions agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.storage.deployment_hash import parse_live
from tallystream.storage.keys import tag_of

if TYPE_CHECKING:
    from tallystream_worker.verify.scene import Scene


def check(scene: Scene) -> None:
    """Report hash tags that differ, partitions whose live generation is not the deployment's, and closed partitions.

    A rebuild that is not finished explains other generations, and a repartition closed partitions: then the operation
    is reported as not proved instead. A partition that has lost the key of its live generation is left out: the check
    of lost keys reports it.
    """
    deployment, report, client = scene.deployment, scene.report, scene.client
    layout, faults_before = deployment.layout, report.faults
    for keys in layout.keys:
        raw = client.get(keys.live)
        if raw is None:
            continue
        live, is_open = parse_live(raw)
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
    if deployment.building is not None:
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
