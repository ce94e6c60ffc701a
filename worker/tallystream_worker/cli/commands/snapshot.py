"""The command `snapshot`: copies the counters to a database, once or repeatedly."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, replace
from typing import Annotated

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream_worker.cli.backup import open_snapshot, snapshot_url
from tallystream_worker.cli.lost_data import ensure_data
from tallystream_worker.cli.options import DAY, AsJson, SnapshotUrl, Where, flag, number
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.process import logs
from tallystream_worker.process.services import running
from tallystream_worker.process.signals import stop_on_signals, wait_for


def snapshot(
    url: SnapshotUrl = None,
    /,
    *,
    once: Annotated[bool, flag("take one snapshot, then exit")] = False,
    whole: Annotated[bool, flag("with --once: read all counters, not only the changed ones")] = False,
    accept_loss: Annotated[
        bool, flag("with --once: replace a snapshot that contains entries that the server has lost")
    ] = False,
    every: Annotated[float | None, number("seconds between snapshots; default [snapshot] every, 60", 0.1, DAY)] = None,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Copy changed counters into a database at an interval, until SIGTERM or Ctrl-C; with --once, only once.

    If the server has no data, the command fails with --once; without --once, it stores an empty deployment there.
    --json has an effect only with --once.
    """
    from tallystream_worker.snapshot.service import snapshot_service  # noqa: PLC0415
    from tallystream_worker.snapshot.snapshotter import Snapshotter  # noqa: PLC0415

    if whole and not once:
        raise ConfigurationError("give --whole only with --once: later snapshots read only the changed counters")
    if accept_loss and not once:
        raise ConfigurationError("give --accept-loss only with --once: each loss is accepted on its own")
    settings = where.settings()
    chosen = replace(settings.snapshot, url=snapshot_url(settings, url), every=every or settings.snapshot.every)
    settings = replace(settings, snapshot=chosen)
    with closing(connect(settings.redis.url)) as client:
        if once:
            ensure_data(settings, Deployment.find(client, settings.redis.namespace))
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        if once:
            with open_snapshot(settings, None) as database:
                began = time.monotonic()
                done = Snapshotter(client, database, deployment).run_once(whole=whole, accept_loss=accept_loss)
                seconds = time.monotonic() - began
            if json:
                print_json({**asdict(done), "seconds": round(seconds, 3)})
            else:
                console.print(f"wrote {done.rows:,} rows in {seconds:.1f} s")
            return
    with (
        stop_on_signals() as stop,
        running(snapshot_service(settings, deployment, logs.configure()), settings.worker.stop_timeout),
    ):
        wait_for(stop)
