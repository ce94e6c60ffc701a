"""The command `reopen`: repairs lost keys if there is no snapshot; counting continues without the lost events."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream_worker.cli.backup import archived_topics
from tallystream_worker.cli.options import AsJson, Where, flag
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.rebuild.describe import describe
from tallystream_worker.rebuild.reopen import reopen as open_again

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import Settings


def reopen(
    *,
    force: Annotated[bool, flag("remove what is left of a partition that cannot be used without a lost key")] = False,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Let counting continue after keys were lost, if there is no snapshot.

    If you have a snapshot, use `tallystream restore --force` instead, which brings the counters back.

    A lost `tally:meta` is stored again, also after a change of the number of partitions. A lost stream is created
    again: its counters stay, and events that were not counted yet are lost. A partition that has lost all its keys
    begins again at 0, for example if a node of a cluster came back empty. With --force, a partition also begins again
    at 0 if it has lost only its key `seq` or `ledger`. Partitions that have their keys do not change. Producers send
    the events again that they still keep.

    The command fails while a rebuild or a repartition is not finished: give it up with `tallystream rebuild --drop`.
    It also fails if a restore was interrupted: run `tallystream restore --force` again.
    """
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        described = describe(
            client,
            settings.redis.namespace,
            settings.redis.partitions,
            lambda topic: _manifest(settings, topic),
            topics=archived_topics(settings, None),
        )
        done = open_again(client, Deployment.find(client, settings.redis.namespace), force=force)
    if json:
        print_json({"mended": [*described, *done.mended], "opened": done.opened})
        return
    if mended := [*described, *done.mended]:
        console.print(f"mended {', '.join(mended)}")
    if done.opened:
        console.print(f"opened {', '.join(done.opened)}: their counters begin again at 0")
    if not mended and not done.opened:
        console.print("nothing was changed: no key is lost that this command can repair")


def _manifest(settings: Settings, topic: int) -> dict[str, Any] | None:
    """Return the manifest of a topic in the configured archive; `None` without an archive or a manifest.

    Raises:
        ArchiveError: the manifest cannot be read.
        ConfigurationError: the URL of the archive cannot be used.
    """
    if not settings.archive.url:
        return None
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

    return Store(settings.archive.url, settings.redis.namespace, topic).manifest()
