"""Reads stored values that scripts calculate with or compare as texts: only the form that tallystream writes is read.

Python would also read other forms, such as `+5` or `05`, which scripts do not: `HINCRBY` and `tonumber` fail, and equal
numbers are different texts. A value in such a form must not count as right.
"""

from __future__ import annotations

import re
from typing import Final

from tallystream.errors import DamagedValue

_NUMBER: Final = r"(?:0|[1-9]\d*)"
_ID: Final = rf"{_NUMBER}-{_NUMBER}"

NUMBER: Final = re.compile(_NUMBER.encode())
"""A whole number that is not negative."""

ID: Final = re.compile(_ID.encode())
"""A stream ID."""

RECORD: Final = re.compile(rf"({_NUMBER}) ({_NUMBER})-({_NUMBER})".encode())
"""The record of a producer or a source: its last number, or its offset, and a stream ID; three groups of digits."""

HORIZON: Final = re.compile(rf"{_ID} {_ID}".encode())
"""The value of `REAPED`: two stream IDs."""

EARLIER: Final = re.compile(rf"{_ID} {_NUMBER}".encode())
"""The value of `STATED`: a stream ID and a time in milliseconds."""

RESTORATION: Final = re.compile(rf"(\S*) ({_ID}) ({_NUMBER})".encode())
"""The value of `RESTORED`: the mark of a snapshot, a stream ID and a number of entries; three groups."""

_SIGNED: Final = re.compile(rb"0|-?[1-9]\d*")


def stored_number(key: str, value: bytes | None, *, field: str | None = None) -> int:
    """Return the number in a key or in a field of a hash; 0 if there is none.

    Args:
        key: Name of the key.
        value: The value of the key, or of the field; `None` if it does not exist.
        field: The field of the key, a hash; `None` if the key is no hash.

    Raises:
        DamagedValue: the value is no number, or has another form than the server writes, such as `+5` or `05`. The
            server adds nothing to such a value, so scripts that count fail.
    """
    if value is None:
        return 0
    if not _SIGNED.fullmatch(value):
        raise DamagedValue(key, value, field=field)
    return int(value)
