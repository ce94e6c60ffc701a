"""The command `drill`: tests a backup by restoring it into a throwaway server."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream_worker.cli.backup import archive_of, open_archive, open_snapshot
from tallystream_worker.cli.lost_data import ensure_data
from tallystream_worker.cli.options import AsJson, FromArchive, SnapshotUrl, Where
from tallystream_worker.cli.output import console, print_json, print_table


def drill(
    url: SnapshotUrl = None,
    /,
    *,
    archive: FromArchive = None,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Restore a snapshot into a throwaway server and compare every value with the live one.

    The entries after the snapshot are counted there too, so no value may differ, although live counting continues. The
    exit status is 1 if a value differs, or if another program has changed rows of the snapshot.
    """
    from tallystream_worker.snapshot.drill import drill as try_out  # noqa: PLC0415

    settings = where.settings()
    began = time.monotonic()
    with (
        closing(connect(settings.redis.url)) as client,
        open_snapshot(settings, url, is_there=True) as database,
    ):
        ensure_data(settings, Deployment.find(client, settings.redis.namespace))
        deployment = Deployment.create_or_load(client, settings.redis.expected, settings.redis.namespace)
        result = try_out(client, database, deployment, open_archive(archive_of(settings, archive, database)))
    seconds, differing = time.monotonic() - began, result.differing + result.uncertain
    damaged = sorted({*result.damaged, *(table for part in result.parts for table in part.damaged)})
    if json:
        print_json({**asdict(result), "seconds": round(seconds, 3)})
    elif differing:
        print_table(
            f"{differing:,} of {result.compared:,} values DIFFER",
            ["value", "live", "restored"],
            [
                [" ".join((each.table, *each.key)), each.live or "-", each.restored or "-"]
                for each in (*result.differences, *result.unclear)
            ],
        )
        if result.uncertain:
            console.print(
                f"{result.uncertain:,} of these may be right: it is not known by which rules some events of their "
                "metrics were counted. Take another snapshot: tallystream snapshot --once",
                soft_wrap=True,
            )
    else:
        console.print(f"0 of {result.compared:,} values differ; everything was restored in {seconds:.1f} s")
    if damaged and not json:
        console.print(
            f"Another program has changed, removed or added rows of the snapshot after it was taken, in the tables "
            f"{', '.join(damaged)}. Take another: tallystream snapshot --once --whole",
            soft_wrap=True,
        )
    return 1 if differing or damaged else 0
