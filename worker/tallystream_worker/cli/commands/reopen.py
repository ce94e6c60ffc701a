"""The command `reopen`: repairs lost keys if there is no snapshot; counting continues without the lost events."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import TallyError
from tallystream_worker.cli.backup import archived_topics
from tallystream_worker.cli.options import AsJson, Where, flag
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.cli.regained import regained_text
from tallystream_worker.process.barrier import step
from tallystream_worker.process.description import note_durability
from tallystream_worker.rebuild.describe import describe, retracted_events
from tallystream_worker.rebuild.reopen import reopen as open_again
from tallystream_worker.rebuild.rule_record import is_record_lost, record_again
from tallystream_worker.runtime.publication import publish_again, publish_lost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream_worker.archive.store import Store
    from tallystream_worker.settings.settings import Settings


def reopen(
    *,
    force: Annotated[
        bool,
        flag("remove what is left of a partition that cannot be used without a lost key; continue without retractions"),
    ] = False,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Let counting continue after keys were lost, if there is no snapshot.

    If you have a snapshot, use `tallystream restore --force` instead, which brings the counters back. If a partition
    has lost its key `seq` or `ledger` and has other keys left, this command changes no partition and fails, unless
    --force is given; a lost `tally:meta` and a lost record of the rules are stored again all the same.

    A lost `tally:meta` is stored again, also after a change of the number of partitions. A lost record of the rules is
    written again: with its earlier changes if the configured archive has them, and with the live rules. A lost stream
    is created again: its counters stay, and events that were not counted yet are lost. A partition that has lost all
    its keys begins again at 0, for example if a node of a cluster came back empty. With --force, a partition also
    begins again at 0 if it has lost only its key `seq` or `ledger`. Partitions that have their keys do not change.
    Producers send the events again that they still keep.

    If the configured archive has changes of the rules that the server has lost, their rules are live again, with what
    was changed after the loss.

    If `tally:meta` and the record of the rules are lost, the retractions are read from the configured archive. If
    events were retracted, and the archive does not state which ones, the command fails. With --force, it continues
    without the retractions: the counters stay right, but a later rebuild counts the retracted events again.

    The command fails while a rebuild or a repartition is not finished; a `tally:meta` that it has stored again stays
    stored. Continue a repartition with `tallystream rebuild --partitions N`. Give up a rebuild, or a repartition that
    cannot be continued, with `tallystream rebuild --drop`.
    It also fails if a restore was interrupted: run `tallystream restore --force` again.
    """
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        described = describe(
            client,
            settings.redis.namespace,
            settings.redis.partitions,
            lambda topic: _manifest(settings, topic),
            rules=settings.rules,
            force=force,
            topics=archived_topics(settings, None),
        )
        unknown, mended, opened, regained = 0, [*described], list[str](), (list[int](), False)
        try:
            deployment = Deployment.find(client, settings.redis.namespace)
            is_lost = is_record_lost(client, deployment)
            if described and is_lost:
                deployment = publish_again(client, deployment, deployment.revision)  # records them
            elif is_lost and record_again(client, deployment, _archived_rules(settings, deployment)):
                mended.append(deployment.layout.rule_changes)
            if described and (deployment.declared is None or not deployment.declared.retracted):
                unknown = retracted_events(client, deployment.layout)
            if described and deployment.is_stored:
                note_durability(client, deployment, settings.worker.durability)
                deployment = deployment.reload(client)
            with step(client, deployment, "the keys are mended"):
                done = open_again(client, deployment, force=force)
                mended, opened = [*mended, *done.mended], [*done.opened]
                if deployment.declared is not None:
                    regained = publish_lost(client, deployment, _archived_rules(settings, deployment))
                if regained[0] and deployment.reload(client).rules.retracted:
                    unknown = 0  # they are known again
        except (TallyError, RedisError):
            if mended or opened:
                _show(mended, opened, unknown, regained, json=json)
            raise
    _show(mended, opened, unknown, regained, json=json)


def _show(
    mended: Sequence[str], opened: Sequence[str], unknown: int, regained: tuple[Sequence[int], bool], *, json: bool
) -> None:
    """Print what a reopening has changed, and how many retracted events are not known.

    Args:
        mended: The keys that were mended.
        opened: The streams of the partitions that were opened, empty.
        unknown: The number of retracted events of which it is not known which ones they are.
        regained: The numbers of the changes of the rules that the server had lost, and whether they are live again.
        json: Whether to print JSON.
    """
    numbers, is_live = regained
    if json:
        found = {"mended": mended, "opened": opened, "unknown_retracted": unknown}
        print_json({**found, "rules_regained": numbers, "regained_live": is_live})
        return
    if numbers:
        console.print(regained_text(numbers, is_live=is_live))
    if unknown:
        console.print(
            f"{unknown:,} events were retracted, and it is not known which ones: the counters leave them out, but a "
            "rebuild counts them again. Retract them again (tallystream retract) before the next rebuild"
        )
    if mended:
        console.print(f"mended {', '.join(mended)}")
    if opened:
        console.print(f"opened {', '.join(opened)}: their counters begin again at 0")
    if not mended and not opened and not numbers:
        console.print("nothing was changed: no key is lost that this command can repair")


def _manifest(settings: Settings, topic: int) -> dict[str, Any] | None:
    """Return the manifest of a topic in the configured archive; `None` without an archive or a manifest.

    Raises:
        ArchiveError: the manifest cannot be read.
        ConfigurationError, ImportError: see `_store`.
    """
    store = _store(settings, topic)
    return None if store is None else store.manifest()


def _archived_rules(settings: Settings, deployment: Deployment) -> dict[str, dict[str, str]]:
    """Return the changes of the rules in the configured archive of the live topic: by ID, the recorded fields.

    Empty without an archive, or if it has none.

    Raises:
        ArchiveError: the changes cannot be read.
        ConfigurationError, ImportError: see `_store`.
    """
    store = _store(settings, deployment.layout.topic)
    return {} if store is None else store.rules()


def _store(settings: Settings, topic: int) -> Store | None:
    """Return the configured archive of a topic; `None` if none is configured.

    Raises:
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: an archive is named, and the package pyarrow is not installed.
    """
    if not settings.archive.url:
        return None
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

    return Store(settings.archive.url, settings.redis.namespace, topic)
