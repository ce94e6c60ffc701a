"""The retractions that a snapshot knows: those of its counters, and those that were made after it was taken.

A retraction is noted in the snapshot, and in the archive, before it becomes live. So a restore finds a retraction that
the counters of the snapshot do not have yet, even if the server was lost before the next snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.rules.retraction import Retraction

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """Write the retractions that are live from now on into a snapshot, unless it is empty; its counters may lack them.

    Raises:
        SnapshotError: the database cannot be used.
    """
    facts, text = database.facts(), encode_retractions(retracted)
    if facts and facts.get(RETRACTED) != text:
        database.state({RETRACTED: text})
