"""Checks the forms of values that scripts or snapshots read, and with which no other check of a verification works."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tallystream.errors import DamagedValue
from tallystream.storage.keys import CLOSED, CLOSING, REAPED, REAPED_SPOOL, RESTORED, RESTORED_AT, STATED, TURN
from tallystream.storage.stored_values import EARLIER, HORIZON, ID, NUMBER, RESTORATION

if TYPE_CHECKING:
    from tallystream_worker.verify.scene import Scene

_FIELDS: Final = {
    "!limit": NUMBER,
    "!hold": NUMBER,
    CLOSED: re.compile(rb"|" + NUMBER.pattern),
    f"!{CLOSING}": NUMBER,
    f"!{TURN}": NUMBER,
    RESTORED: RESTORATION,
    RESTORED_AT: NUMBER,
    REAPED: HORIZON,
    REAPED_SPOOL: HORIZON,
    STATED: EARLIER,
}
"""Fields of `PartitionKeys.sequences`, and the forms of their values. Other fields that are no records heal themselves:
scripts that cannot read them write them again."""


def check(scene: Scene) -> None:
    """State, as checks that could not be made, damaged fields of the sequences, and damaged retention holds.

    They are damaged if they have another form than tallystream writes: then scripts that append, trim or close, and
    checks for lost entries, fail or decide wrongly. The records of producers, which are other fields of the sequences,
    are not checked here.

    Raises:
        redis.RedisError: the server does not reply, or rejects a command.
    """
    for keys in scene.deployment.layout.keys:
        with scene.client.pipeline(transaction=True) as pipeline:
            pipeline.hmget(keys.sequences, list(_FIELDS))
            pipeline.hgetall(keys.retention_holds)
            values, holds = pipeline.execute()
        found = [(keys.sequences, *each) for each in zip(_FIELDS, values, _FIELDS.values(), strict=True)]
        found += [(keys.retention_holds, name.decode(errors="replace"), id_, ID) for name, id_ in holds.items()]
        for key, field, value, form in found:
            if value is not None and not form.fullmatch(value):
                scene.report.fail("forms", str(DamagedValue(key, value, field=field)))
