"""The command that makes the counters anew, and goes back, and cleans up."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream_worker.cli.differences import print_differences
from tallystream_worker.cli.generation import build
from tallystream_worker.cli.options import AcceptLoss, AsJson, FromArchive, Where, flag, whole_number
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.cli.repartition import drop_topics, to_partitions, unspread_rules
from tallystream_worker.rebuild.compare import compare
from tallystream_worker.rebuild.drop import drop as remove
from tallystream_worker.rebuild.rebuild import propose

if TYPE_CHECKING:
    from tallystream_worker.rebuild.values import Difference


def rebuild(
    *,
    archive: FromArchive = None,
    accept_loss: AcceptLoss = False,
    no_switch: Annotated[bool, flag("build and compare; leave the live counters as they are")] = False,
    undo: Annotated[bool, flag("catch up the counters from before, and go back to them")] = False,
    drop: Annotated[bool, flag("remove the counters, and the log, that are not live")] = False,
    partitions: Annotated[
        int | None, Parameter(converter=whole_number, help="move everything to this many partitions, while events flow")
    ] = None,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Make the counters anew by the configured rules, beside the live ones; show what differs; switch to them.

    The counters from before are kept until --drop. A rebuild that was interrupted goes on where it was.

    With --partitions, by the live rules and in a new log: `tallystream rebuild --partitions 16`. Before the switch it
    can be given up with --drop; there is no way back after it, but to move again. Where a metric is not spread any
    more, that is done with the number of partitions that there are.
    """
    if sum((undo, drop, partitions is not None)) > 1 or (no_switch and partitions is not None):
        raise ConfigurationError(
            "one of --undo, --drop and --partitions at a time, and no --no-switch with --partitions"
        )
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client, settings.redis.namespace)
        if drop:
            removed = {generation: remove(client, deployment, generation) for generation in sorted(deployment.others)}
            logs = drop_topics(client, deployment)
            if json:
                print_json({"removed": removed, "logs": logs})
            else:
                named = {f"generation {each}": keys for each, keys in removed.items()}
                named |= {f"log {each}": keys for each, keys in logs.items()}
                said = ", ".join(f"{name} ({keys:,} keys)" for name, keys in named.items())
                console.print(f"removed {said or 'nothing: there are only the live counters'}")
            return
        if partitions is None and not undo and not no_switch and unspread_rules(deployment, settings.rules) is not None:
            partitions = deployment.layout.partitions  # a log whose events are at home again is another log
        if partitions is not None:
            source = settings.archive.url if archive is None else archive
            to_partitions(settings, deployment, partitions, source, accept_loss=accept_loss, json=json)
            return
        if undo:
            generation = _kept(deployment)
        else:
            generation = propose(client, deployment, settings.rules)
            deployment = Deployment.load(client, settings.redis.namespace)
        source = settings.archive.url if archive is None else archive
        differences: list[Difference] = []

        def review() -> bool:
            if not undo:
                differences.extend(compare(client, deployment, generation))
                if not json:
                    print_differences(_as_changes(differences))
            return not no_switch

        build(settings, deployment, generation, source, accept_loss=accept_loss, begun=undo, review=review)
    if json:
        listed = [asdict(each) | {"difference": each.difference} for each in differences]
        print_json({"generation": generation, "live": not no_switch, "differences": listed})
    elif no_switch:
        console.print(f"generation {generation} is built, {len(differences):,} counters differ; not switched to it")
    else:
        console.print(f"generation {generation} is live; the one before is kept: --undo goes back, --drop removes it")


def _kept(deployment: Deployment) -> int:
    if deployment.kept is not None and not deployment.others:
        raise ConfigurationError(
            "there is no way back from other partitions: what came since is not in the log before. Move again with "
            f"--partitions {deployment.earlier[deployment.kept]}, once --drop has removed that"
        )
    kept = [generation for generation in deployment.others if generation != deployment.building]
    if deployment.building is not None or len(kept) != 1:
        raise ConfigurationError("there are no counters to go back to")
    return kept[0]


def _as_changes(differences: list[Difference]) -> list[Difference]:
    """Return them the other way round: what is live now is what was found, what is new is expected."""
    return [replace(each, expected=each.found, found=each.expected) for each in differences]
