"""Fetches what is still appended to a closed log, by clients that XADD plain events to its streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream_worker.repartition.copy import CopiedElsewhere, StreamCopier

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment


class StragglerCopier:
    """Copies what comes late from the log before the present one, for as long as that is kept.

    Args:
        client: Where both are.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._copying: StreamCopier | None = None
        self._between: tuple[int, int] | None = None

    def __call__(self, meta: Deployment) -> int:
        """Copy what is there; return how many entries that were.

        Every worker may do this: each entry is copied once.
        """
        old = None if meta.kept is None else meta.layout_of(meta.kept)
        if old is None:
            self._copying = None
            return 0
        between = (old.log, meta.layout.log)
        if self._copying is None or self._between != between:
            self._copying, self._between = StreamCopier(self._client, old, meta.layout, spread=meta.spread), between
        try:
            return self._copying()
        except CopiedElsewhere:
            self._copying = None  # another worker was first: look anew in the next round
            return 0
