"""Explains an error about lost data: if a backup has the data, the error names it and what restores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.client.connect import without_credentials
from tallystream.errors import BRING_BACK, NothingDeclared, TallyError
from tallystream_worker.cli.options import current_settings
from tallystream_worker.runtime.lost_data import backup_of

_NO_BACKUP: Final = (
    "name the snapshot or the archive that has the data in the configuration ([snapshot] url, [archive] url), and run "
    "the command again: none that is configured has it"
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream.deployment import Deployment
    from tallystream_worker.settings.settings import Settings


def explained(error: TallyError) -> str:
    """Return the text of an error; if it is about lost data, it names the backup that has data of the namespace.

    If no backup has it, the text states this, instead of a command that names the backup. The backups are those of
    `current_settings`. One that cannot be read counts as none.
    """
    settings, text = current_settings(), str(error)
    if settings is None or not (isinstance(error, NothingDeclared) or BRING_BACK in text):
        return text
    if isinstance(error, NothingDeclared):
        return backup_text(settings)() or text.replace(BRING_BACK, _NO_BACKUP)
    if not (found := backup_of(settings)):
        return text.replace(BRING_BACK, _NO_BACKUP)
    return f"{text.rpartition(BRING_BACK)[0].removesuffix(', ')}: {found[:1].lower()}{found[1:]}"


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
