"""The command `plan`, which is in a distribution of its own: `tallystream-worker[plan]` installs it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

from tallystream.errors import ConfigurationError

if find_spec("tallystream_plan") is not None:
    from tallystream_plan.command import plan
else:

    def plan(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:  # type: ignore[misc]
        """Name the extra that has the calculation."""
        del arguments
        raise ConfigurationError(
            "tallystream plan is not installed: install it with pip install 'tallystream-worker[plan]'"
        )


__all__ = ["plan"]
