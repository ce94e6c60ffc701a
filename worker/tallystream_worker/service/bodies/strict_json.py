"""Decodes JSON strictly: rejects repeated keys, and reports the invalid field."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tallystream.errors import EventError

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

T = TypeVar("T")

_SHOWN: Final = 200
_AT_FAULT: Final = re.compile(r"(?:at `\$\.|field `)(\w{1,64})`$")


def decode_strictly(text: bytes | msgspec.Raw, decode: Callable[[bytes | msgspec.Raw], T]) -> T:
    """Return the decoded value of a JSON text.

    Args:
        text: The JSON text.
        decode: The `decode` of a msgspec decoder.

    Raises:
        EventError: the text is not JSON, not of the type of the decoder, or has a repeated key; `field` of the error is
            the invalid field or key, or `body`.
    """
    try:
        value = decode(text)
        # Decode again to find repeated keys: the decoder would silently use the last one.
        json.loads(bytes(text), object_pairs_hook=_only_once)
    except EventError:
        raise
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        if isinstance(error.__cause__, EventError):
            raise error.__cause__ from None
        found = _AT_FAULT.search(str(error))
        raise EventError(found[1] if found else "body", str(error)[:_SHOWN]) from None
    return value


def _only_once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise EventError(key, "must be given only once")
        seen.add(key)
