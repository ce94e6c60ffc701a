"""Explains an error of a value in a snapshot by the rows that another program has changed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from tallystream.client.error_text import named_text
from tallystream.errors import TallyError
from tallystream_worker.snapshot.database import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.snapshot.database import Database


@contextmanager
def explaining_damage(database: Database, partitions: int = 0) -> Iterator[None]:
    """Raise a `SnapshotError` in place of an error in the context, if another program has changed the snapshot.

    Only a `ValueError`, `LookupError` or `MsgspecError` that is not a `TallyError` is replaced, and only if the facts,
    or rows of the partitions, were changed, removed or added after the snapshot was taken. Any other error is raised
    unchanged.

    Args:
        database: The snapshot.
        partitions: The number of its partitions if their rows are checked too; 0 to check only the facts.
    """
    try:
        yield
    except (ValueError, LookupError, msgspec.MsgspecError) as error:
        if isinstance(error, TallyError):
            raise
        changed = sorted({table for number in (None, *range(partitions)) for table in database.damaged(number)})
        if not changed:
            raise
        raise SnapshotError(
            f"{database.place}: another program has changed, removed or added rows of the snapshot after it was taken, "
            f"in the tables {', '.join(changed)}, so it cannot be used ({named_text(error)}). Use a copy of the "
            "database that has the right rows"
        ) from error
