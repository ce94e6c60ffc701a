"""Reads the numbers that scripts count with."""

from __future__ import annotations

import re
from typing import Final

from tallystream.errors import DamagedValue

_STORED: Final = re.compile(rb"0|-?[1-9]\d*")
"""The only form in which a server writes a number, and to which it adds."""


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
    if not _STORED.fullmatch(value):
        raise DamagedValue(key, value, field=field)
    return int(value)
