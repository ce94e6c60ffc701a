"""The retractions that a snapshot knows: those of its counters, and those that were made after it was taken.

A retraction is noted in the snapshot, and in the archive, before it becomes live. So a restore finds a retraction that
the counters of the snapshot do not have yet, even if the server was lost before the next snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.rules.retraction import Retraction
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream.storage.keys import Layout
    from tallystream_worker.snapshot.database import Database

RETRACTED: Final = "retracted"
"""The fact with the live retractions, as JSON; the rules of the snapshot have those that its counters have."""


def encode_retractions(retracted: Sequence[Retraction]) -> str:
    """Return retractions as JSON."""
    return msgspec.json.encode(retracted).decode()


def decode_retractions(text: str | bytes) -> list[Retraction]:
    """Return the retractions in the JSON text of `encode_retractions`."""
    return msgspec.json.decode(text, type=list[Retraction])


def note_retractions(database: Database, retracted: Sequence[Retraction]) -> None:
    """Write the retractions that are live from now on into a snapshot, in place of those that were noted before.

    Call it before the rules with these retractions become live. The counters of the snapshot may lack them. Do nothing
    if there is no complete snapshot.

    Raises:
        SnapshotError: the database cannot be used.
        ConfigurationError: the database was opened with `is_there`, and its SQLite file does not exist.
    """
    facts, text = database.facts(), encode_retractions(retracted)
    if facts and facts.get(RETRACTED) != text:
        database.state({RETRACTED: text})


def missing_retractions(
    present: Sequence[Retraction], sources: Sequence[Sequence[Retraction]], layout: Layout, latest: int
) -> list[Retraction]:
    """Return the retractions in `sources` that are not in `present`, as retractions of one topic; each only once.

    A retraction that an earlier source has added counts as in `present` for the later ones.

    A retraction is not missing if `present` has an equal one. A retraction without `until` (a repartition removes it,
    see `after_copying`) is also not missing if one in `present` describes the same events, whatever its `until`; each
    in `present` stands for at most one such retraction of a source. Any other one without a stream of this topic in
    `until` gets a new `until`, with every stream of this topic: the latest millisecond in its own `until`, or `latest`
    if that is empty. It is missing if `present` has none that is equal to it then.

    Args:
        present: The retractions of the topic.
        sources: Lists of retractions, each of this topic or of another one.
        layout: The layout of the topic.
        latest: A millisecond that is not before that of any entry of the topic.
    """
    streams = {keys.stream for keys in layout.keys}
    known, missing = list(present), []
    for source in sources:
        unmatched = list(known)
        for retraction in source:
            each = retraction
            if each not in known and not each.until.keys() & streams:
                if not each.until and (same := next((k for k in unmatched if _is_same(k, each)), None)) is not None:
                    unmatched.remove(same)
                    continue
                last = max((parse_id(id_)[0] for id_ in each.until.values()), default=latest)
                until = dict.fromkeys(sorted(streams), f"{last}-{2**64 - 1}")
                each = msgspec.structs.replace(each, until=until)
            if each not in known:
                missing.append(each)
                known.append(each)
            elif each in unmatched:
                unmatched.remove(each)
    return missing


def _is_same(one: Retraction, other: Retraction) -> bool:
    """Return whether two retractions describe the same events; `until` is not compared."""
    return msgspec.structs.replace(one, until={}) == msgspec.structs.replace(other, until={})
