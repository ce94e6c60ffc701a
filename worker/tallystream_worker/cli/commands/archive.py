"""The command `archive`: writes the entries of the streams to Parquet files."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream.client.connect import connect, without_credentials
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream_worker.cli.options import DAY, AsJson, Where, flag, number
from tallystream_worker.cli.output import console, error_console, print_json
from tallystream_worker.process import logs
from tallystream_worker.process.services import running
from tallystream_worker.process.signals import stop_on_signals, wait_for

if TYPE_CHECKING:
    from tallystream_worker.archive.lost import LostEntries


def archive(
    url: Annotated[str | None, Parameter(help="folder or URL; default [archive] url")] = None,
    /,
    *,
    once: Annotated[bool, flag("archive the entries that exist now, then exit")] = False,
    every: Annotated[float | None, number("seconds between files; default [archive] every, 60", 0.1, DAY)] = None,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Write every entry of the streams to Parquet files, until SIGTERM or Ctrl-C; with --once, those that exist now.

    Without --once, entries younger than 2 seconds wait. An archive of other data is refused. If the server has no data,
    an empty deployment is stored there. --json has an effect only with --once.
    """
    # Imported here because pyarrow is an extra: the other commands must work without it.
    from tallystream_worker.archive.service import Archive, archive_service  # noqa: PLC0415
    from tallystream_worker.archive.store import Store  # noqa: PLC0415

    settings = where.settings()
    chosen = replace(settings.archive, url=url or settings.archive.url, every=every or settings.archive.every)
    if not chosen.url:
        raise ConfigurationError("no archive: name a folder or a URL, or set [archive] url")
    settings = replace(settings, archive=chosen)
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        if once:
            began = time.monotonic()
            store = Store(chosen.url, deployment.layout.namespace, deployment.layout.topic)
            events = Archive(client, store, deployment, _report).run_once(settled=0)
            seconds = time.monotonic() - began
            if json:
                print_json({"archive": chosen.url, "events": events, "seconds": round(seconds, 3)})
            else:
                console.print(
                    f"archived {events:,} events in {seconds:.1f} s to {without_credentials(chosen.url)}",
                    soft_wrap=True,
                )
            return
    with (
        stop_on_signals() as stop,
        running(archive_service(settings, deployment, logs.configure()), settings.worker.stop_timeout),
    ):
        wait_for(stop)


def _report(lost: LostEntries) -> None:
    error_console.print(
        f"{lost.stream}: the server has lost {lost.entries:,} archived entries ({lost.events:,} events) after "
        f"{lost.after} up to {lost.until}; {lost.sent_again:,} of them were sent again, or a restored snapshot has "
        "their events. They are set aside, in the folder lost of the archive",
        soft_wrap=True,
    )
