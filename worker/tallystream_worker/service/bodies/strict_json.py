"""JSON read strictly: a key that comes twice is refused, and an error names the field at fault."""

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
    """Return what a JSON text decodes to.

    Args:
        text: The JSON text.
        decode: A msgspec decoder's `decode`.

    Raises:
        EventError: it is no JSON, not of that shape, or has a key twice; names the field, or `body`.
    """
    try:
        value = decode(text)
        # The decoder alone would let the last one of two equal keys win.
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
            raise EventError(key, "must be given once only")
        seen.add(key)
