"""Counts the events that the archive has of later topics only: a restore of an earlier topic leaves them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.wire.codec import COPIED, own_events
from tallystream_worker.archive.rows import raw_fields
from tallystream_worker.archive.store import Store

if TYPE_CHECKING:
    from tallystream_worker.archive.store import File

_COLUMNS: Final = ["events", "producer", "raw"]


def later_events(url: str, namespace: str, topic: int) -> dict[int, int]:
    """Return, by number of each topic after `topic`, how many archived events it has that no repartition copied there.

    Topics without such events, or without a manifest, are left out. The files of a partition are read from the last to
    the first, up to one that has only copies and is before one that has other events. So the number may be too small,
    but it is not 0 if there is such an event.

    Args:
        url: Folder or URL of the archive.
        namespace: The namespace of the deployment.
        topic: The number of a topic.

    Raises:
        ArchiveError: the archive cannot be listed or read.
        CodecError: a file has a damaged row `raw`.
        ConfigurationError: the URL cannot be used.
    """
    found = {}
    for later in Store(url, namespace).later_topics():
        if later > topic:
            store = Store(url, namespace, later)
            partitions = int((store.manifest() or {}).get("partitions", 0))
            if events := sum(_events_of(store, partition) for partition in range(partitions)):
                found[later] = events
    return found


def _events_of(store: Store, partition: int) -> int:
    events = 0
    for file in reversed(list(store.files(partition))):
        own = _own_events(store, file)
        if not own and events:
            break
        events += own
    return events


def _own_events(store: Store, file: File) -> int:
    table = store.columns(file, _COLUMNS)
    own = 0
    for events, producer, raw in zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True):
        if raw is not None:
            own += own_events(raw_fields(raw))
        elif producer != COPIED.decode():
            own += events
    return own
