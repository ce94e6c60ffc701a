"""Texts for what a command cannot use: a package that is not installed, or a value that another program has changed."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.client.error_text import named_text
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_DATA: Final = (ValueError, LookupError, msgspec.MsgspecError)
"""Errors of a stored value that another client or program wrote, and that has another form than a command expects."""


def of_data(error: Exception) -> str:
    """Return the text of an error of `OF_DATA`: what happened, in which line of the code, and what to do."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    line = f" ({Path(place[0].filename).name}, line {place[0].lineno})" if place else ""
    return (
        f"a value on the server, in the archive or in the snapshot has a form that tallystream never writes: "
        f"{named_text(error)}{line}. Another client or program has probably changed it. To find it, run: tallystream "
        "verify. If verify finds nothing, this is a defect of tallystream: report this text"
    )


@contextmanager
def archive_package() -> Iterator[None]:
    """Raise a `ConfigurationError` that names the missing package, if the code in the context does not find pyarrow."""
    try:
        yield
    except ModuleNotFoundError as error:  # pyarrow is an extra
        if error.name != "pyarrow":
            raise
        raise ConfigurationError("the archive needs pyarrow: pip install 'tallystream-worker[archive]'") from None
