"""The part of `tallystream rebuild` that moves everything to other partitions, and drops what was before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace as changed

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import MAX_PARTITIONS
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.cli.progress import entries_bar
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.migration import RepartitionProgress, repartition

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.settings.settings import Settings


def unspread_rules(deployment: Deployment, rules: Rules) -> Rules | None:
    """Return the live rules without spreading what the configured ones do not spread; `None` if nothing changes."""
    names = (deployment.spread & rules.metric.keys()) - rules.spread
    if not names:
        return None
    unspread = {
        name: changed(deployment.rules.metric[name], spread=False) for name in names & deployment.rules.metric.keys()
    }
    return changed(deployment.rules, metric=deployment.rules.metric | unspread)


def to_partitions(
    settings: Settings, deployment: Deployment, partitions: int, archive: str, *, accept_loss: bool, json: bool
) -> None:
    """Move to so many partitions, with a bar, and say what is left to do; what is not spread any more goes home.

    Raises:
        ConfigurationError: the repartition cannot be begun.
        StreamError: it was given up, or must be.
    """
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise ConfigurationError(f"--partitions must be 1 to {MAX_PARTITIONS:,}, not {partitions:,}")
    before, layout = deployment.layout.partitions, deployment.layout
    rules = unspread_rules(deployment, settings.rules)
    if is_needed := partitions != before or rules is not None:
        with entries_bar() as bar:
            task = bar.add_task("copying", total=None, entries=0)

            def show(at: RepartitionProgress) -> None:
                bar.update(task, description=at.stage, completed=at.entries, total=at.of, entries=at.entries)

            layout = repartition(
                settings, deployment, partitions, rules=rules, archive=archive, accept_loss=accept_loss, show=show
            )
    if json:
        print_json({"partitions": partitions, "before": before, "log": layout.topic, "moved": is_needed})
        return
    if not is_needed:
        console.print(f"there are {partitions} partitions already")
        return
    console.print(
        f"everything is in {partitions} partitions (log {layout.topic}); producers, workers and readers go on there. "
        "What was before is kept: --drop removes it"
    )
    console.print(
        f"to do: where a configuration says partitions = {before}, write {partitions} or leave it out; clients that "
        "XADD plain events go to the streams that tallystream status names (until --drop, what they append to the old "
        "ones is fetched from there)",
        highlight=False,
    )


def drop_topics(client: redis.Redis, deployment: Deployment) -> dict[int, int]:
    """Give up a log that is being filled, drop the one before the last repartition; return their numbers of keys."""
    removed = {}
    if deployment.moving is not None:
        removed[deployment.moving] = topic.give_up(client, deployment)
    if deployment.kept is not None:
        removed[deployment.kept] = topic.drop(client, deployment)
    return removed
