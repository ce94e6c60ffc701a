"""The command `reopen`: continues without the events of partitions that have lost all their keys."""

from __future__ import annotations

from contextlib import closing

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.rebuild.reopen import reopen as open_again


def reopen(*, json: AsJson = False, where: Where = Where()) -> None:
    """Open partitions that have lost all their keys; their counters begin again at 0.

    A partition loses all keys if a node of a cluster comes back empty, for example. If you have a snapshot, use
    `tallystream restore --force` instead, which brings the counters back. Partitions that have their keys do not
    change. Producers send again the events that they still keep; all other events of these partitions are lost.
    """
    settings = where.settings()
    with closing(connect(settings.redis.url)) as client:
        streams = open_again(client, Deployment.load(client, settings.redis.namespace))
    if json:
        print_json({"opened": streams})
    elif streams:
        console.print(f"opened {', '.join(streams)}: their counters begin again at 0")
    else:
        console.print("no partition has lost all its keys: nothing was changed")
