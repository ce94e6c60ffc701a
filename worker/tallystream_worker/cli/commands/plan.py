"""The command `plan`: imported from the distribution `tallystream-plan`, which `tallystream-worker[plan]` installs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

from tallystream.errors import ConfigurationError

if find_spec("tallystream_plan") is not None:
    from tallystream_plan.command import plan
else:

    def plan(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:  # type: ignore[misc]
        """Fail with an error that names the extra to install.

        Raises:
            ConfigurationError: always.
        """
        del arguments
        raise ConfigurationError(
            "tallystream plan is not installed: install it with pip install 'tallystream-worker[plan]'"
        )


__all__ = ["plan"]
