"""Checks subjects and actors, and remembers the valid ones, so that each is checked once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import EventError
from tallystream.storage.keys import partition_of
from tallystream.wire.event import MAX_ACTOR_BYTES, MAX_SUBJECT_BYTES, check_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from tallystream.storage.keys import Layout

REMEMBERED: Final = 50_000
"""When a cache has so many subjects (of this partition, or of any), or actors, it forgets all of this kind."""


class SubjectCache:
    """Checks subjects and actors; a valid one is checked only once while the cache remembers it.

    Args:
        layout: The number of partitions, and their keys.
        partition: The partition in which the subjects are counted.

    Attributes:
        may_be_outdated: Whether `subject` has rejected a subject of another partition, or a metric was not declared,
            since the caller last set this to `False`: newer rules might count the event.
    """

    def __init__(self, layout: Layout, partition: int) -> None:
        self._layout = layout
        self._partition = partition
        self._home: set[str] = set()
        self._anywhere: set[str] = set()
        self._actors: set[str] = set()
        self.may_be_outdated = False

    def subjects(self, *, anywhere: bool) -> AbstractSet[str]:
        """Return the remembered valid subjects: those that `subject` has checked with the same `anywhere`.

        With `anywhere=False`, they belong to this partition. The set itself is returned, and `subject` changes it.
        """
        return self._anywhere if anywhere else self._home

    def subject(self, subject: str, *, anywhere: bool) -> None:
        """Check that a subject is valid, and, unless `anywhere`, that it belongs to this partition.

        Give `anywhere` for events of a spread metric, except those with an id.

        Raises:
            EventError: the subject is not valid, or it belongs to another partition (`may_be_outdated` is set).
        """
        known = self._anywhere if anywhere else self._home
        if subject in known:
            return
        check_normal("subject", subject, MAX_SUBJECT_BYTES)
        home = partition_of(subject, self._layout.partitions)
        if home != self._partition and not anywhere:
            self.may_be_outdated = True
            raise EventError("subject", f"belongs to another partition: append it to {self._layout.keys[home].stream}")
        if len(known) >= REMEMBERED:
            known.clear()
        known.add(subject)

    def are_actors(self, actors: Iterable[str]) -> bool:
        """Return whether all of these actors are valid, and remember them if they are."""
        fresh = set(actors) - self._actors
        try:
            for actor in fresh:
                check_normal("actor", actor, MAX_ACTOR_BYTES)
        except EventError:
            return False
        if len(self._actors) >= REMEMBERED:
            self._actors.clear()
        self._actors |= fresh
        return True


def check_normal(field: str, text: str, limit: int) -> None:
    """Check text that tallystream's producers would have checked and normalised before they sent it.

    Args:
        field: The name of the field, for the error.
        text: The value.
        limit: The largest length in bytes.

    Raises:
        EventError: the text breaks a rule, or is not in Unicode normal form C.
    """
    if check_text(field, text, limit) != text:
        raise EventError(field, "is not in Unicode normal form C")
