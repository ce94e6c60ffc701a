"""What was looked at once and found sound: subjects that are counted in this partition, and actors."""

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
"""Subjects, and actors, that are remembered; beyond it the memory is begun anew."""


class SubjectCache:
    """Checks each subject and actor once, for as long as it remembers them.

    Args:
        layout: How many partitions there are.
        partition: The one in which the subjects are to be counted.

    Attributes:
        has_misrouted: A subject of another partition was met.
    """

    def __init__(self, layout: Layout, partition: int) -> None:
        self._layout = layout
        self._partition = partition
        self._home: set[str] = set()
        self._anywhere: set[str] = set()
        self._actors: set[str] = set()
        self.has_misrouted = False

    def subjects(self, *, anywhere: bool) -> AbstractSet[str]:
        """Return the subjects that need no look any more: of metrics that are spread (`anywhere`), or of all others."""
        return self._anywhere if anywhere else self._home

    def subject(self, subject: str, *, anywhere: bool) -> None:
        """Check a subject.

        Raises:
            EventError: it breaks a rule, or belongs to another partition.
        """
        known = self._anywhere if anywhere else self._home
        if subject in known:
            return
        check_normal("subject", subject, MAX_SUBJECT_BYTES)
        home = partition_of(subject, self._layout.partitions)
        if home != self._partition and not anywhere:
            self.has_misrouted = True
            raise EventError("subject", f"belongs to another partition: append it to {self._layout.keys[home].stream}")
        if len(known) >= REMEMBERED:
            known.clear()
        known.add(subject)

    def are_actors(self, actors: Iterable[str]) -> bool:
        """Tell whether all of these are sound."""
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
    """Refuse text that no producer of ours would have sent: it breaks a rule, or is not normalised.

    Raises:
        EventError: what is wrong with it.
    """
    if check_text(field, text, limit) != text:
        raise EventError(field, "is not in Unicode normal form C")
