"""Explains an error about a server without data: if a backup has the data, the error names it and what restores it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.client.connect import without_credentials
from tallystream.errors import NothingDeclared, TallyError
from tallystream_worker.cli.options import current_settings
from tallystream_worker.runtime.lost_data import backup_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings


def explained(error: TallyError) -> str:
    """Return the text of an error; of `NothingDeclared`, if a backup has data of the namespace, a text about that.

    The backups are those of `current_settings`. One that cannot be read counts as none.
    """
    settings = current_settings()
    if not isinstance(error, NothingDeclared) or settings is None:
        return str(error)
    return backup_text(settings)() or str(error)


def backup_text(settings: Settings) -> Callable[[], str]:
    """Return a function that returns a text about the backup that has the data of an emptied server; `""` for none.

    A backup that cannot be read counts as none.
    """

    def text() -> str:
        found = backup_of(settings)
        return f"{without_credentials(settings.redis.url)} has no data of this deployment. {found}" if found else ""

    return text


def ensure_data(settings: Settings, deployment: Deployment) -> None:
    """Raise `NothingDeclared` if no deployment is stored, or if it has no rules although a backup has data of before.

    A deployment without rules is no error if no backup has data of the namespace: no worker may have published the
    rules yet. A backup that cannot be read counts as none.
    """
    deployment.ensure_stored()
    if deployment.declared is None and backup_of(settings):
        deployment.ensure_declared()
