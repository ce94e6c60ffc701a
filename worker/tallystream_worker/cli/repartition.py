"""The part of `tallystream rebuild` that repartitions, and drops the topics that are not live."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from msgspec.structs import replace as changed

from tallystream.client.connect import connect
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.cli.progress import entries_bar
from tallystream_worker.cli.unfinished import stating_unfinished, unfinished
from tallystream_worker.process.barrier import confirm
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.migration import RepartitionProgress, repartition

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.settings.settings import Settings


def unspread_rules(deployment: Deployment, rules: Rules) -> Rules | None:
    """Return the live rules, with `spread` turned off for each metric that is spread and that `rules` declare unspread.

    A metric is spread if its events may be in any partition, even if the live rules do not declare it.

    Args:
        deployment: The deployment with its live rules.
        rules: The configured rules.

    Returns:
        The rules; `None` if there is no such metric. If the live rules declare none of these metrics, the rules are
        equal to the live ones: a repartition is needed all the same.
    """
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
    """Repartition to a number of partitions, with a progress bar, and print what the operator has to do next.

    Also repartitions, even to the same number, if the configuration turns `spread` off for a metric: the events of the
    metric return to the partition of their subject. Otherwise the same number changes nothing: this only waits until
    the present topic is confirmed.

    Args:
        settings: The configuration.
        deployment: The deployment to repartition.
        partitions: The number of partitions, 1 to `MAX_PARTITIONS`.
        archive: URL of the archive; `""` for none.
        accept_loss: Continue although entries are gone from the streams and the archive.
        json: Print the result as JSON instead.

    Raises:
        ConfigurationError: the repartition cannot begin, or the configuration contradicts the stored rules.
        StreamError: the repartition could not be finished; see `repartition` for the reasons.
        Unconfirmed: a step was not confirmed in time; call again to continue.
        ArchiveError, CodecError, redis.RedisError: the archive or the server failed; call again to continue. The old
            topic may stay closed until then, so that nothing is appended.
        ImportError: an archive is named or configured, and the package pyarrow is not installed.

    Any other error of `CountingLoop.run_once` is raised too.
    """
    before, layout = deployment.layout.partitions, deployment.layout
    rules = unspread_rules(deployment, settings.rules_over(deployment.declared))
    if is_needed := partitions != before or rules is not None:
        with stating_unfinished(settings, deployment), entries_bar() as bar:
            task = bar.add_task("copying", total=None, entries=0)

            def show(at: RepartitionProgress) -> None:
                bar.update(task, description=at.stage, completed=at.entries, total=at.of, entries=at.entries)

            layout = repartition(
                settings, deployment, partitions, rules=rules, archive=archive, accept_loss=accept_loss, show=show
            )
    else:
        with closing(connect(settings.redis.url)) as client:  # the switch of an earlier run may not be confirmed
            confirm(client, deployment, f"there are already {partitions} partitions")
    if json:
        print_json({"partitions": partitions, "before": before, "topic": layout.topic, "moved": is_needed})
        return
    if not is_needed:
        console.print(f"there are already {partitions} partitions")
        for line in unfinished(deployment):
            error_console.print(line, soft_wrap=True)
        return
    console.print(
        f"{partitions} partitions are live (topic {layout.topic}); producers, workers and readers switch to them. "
        "The previous topic is kept: --drop removes it"
    )
    console.print(
        f"to do: if a configuration has partitions = {before}, change it to {partitions} or remove it; clients that "
        "XADD plain events must append to the streams that tallystream status prints (until --drop, events appended to "
        "the old streams are counted too)",
        highlight=False,
    )


def drop_topics(client: redis.Redis, deployment: Deployment) -> dict[int, int]:
    """Give up an unfinished repartition, also one whose giving up was interrupted; drop every topic that is not live.

    The keys of a topic that was live before are not all removed: see `topic.drop`. Before the topic from before the
    last repartition is dropped, events that were added to it since are copied to the live one.

    Returns:
        By number of each topic that was removed, the number of removed keys.

    Raises:
        StreamError: the topic of the unfinished repartition is not being filled any more: it is the live one now, or
            another process has given it up. Or the topic from before the last repartition could not be removed: see
            `topic.drop`.
        Unconfirmed: a removal, or what must be copied before it, was not confirmed in time.
        KeyLost: the hash of the live topic is lost, or a partition has lost a key and may be closed: see
            `topic.give_up`.
        DeploymentChanged: the data was deleted or replaced meanwhile, or a restore has not finished.
        ConfigurationError: this release cannot read the stored layout version or rules.
        DamagedValue: a stored value has a form that tallystream never writes.
        CodecError: the record of a dropped dead letter is damaged, so the topic from before the last repartition was
            not removed.
        redis.RedisError: the server does not reply, or rejects a command.

    After an error, some topics may be dropped, and others not: read the deployment again, and call again.
    """
    topic.settle(client, deployment)
    removed = topic.drop_left(client, deployment)
    if deployment.moving is not None:
        removed[deployment.moving] = topic.give_up(client, deployment)
    if deployment.kept is not None:
        removed[deployment.kept] = topic.drop(client, deployment)
    return removed
