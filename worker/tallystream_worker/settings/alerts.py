"""An `[[alert]]` table of the configuration: the condition, which is published, and the hook, which is not."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tallystream.errors import ConfigurationError
from tallystream.rules.alerts import Alert

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Hook:
    """Where notifications go: a URL, and the key by which they are signed (empty: they are not)."""

    url: str
    key: bytes = field(default=b"", repr=False)


class AlertTable(Alert, frozen=True, forbid_unknown_fields=True):
    """A condition and its hook; `secret` names where the key is: `env:NAME` or `file:PATH`."""

    webhook: str = ""
    secret: str = ""

    @property
    def condition(self) -> Alert:
        """The part that everyone may read."""
        return Alert(
            self.name, self.metric, self.subject, self.window, self.over, self.rate, self.above, self.below, self.clear
        )

    def hook(self, environment: Mapping[str, str]) -> Hook | None:
        """Return where its notifications go, `None` for the log alone.

        Raises:
            ConfigurationError: the URL or the secret cannot be used.
        """
        where = f"[[alert]] {self.name[:64]!r}"
        if not self.webhook:
            if self.secret:
                raise ConfigurationError(f"{where}: a secret without a webhook signs nothing")
            return None
        url = urlsplit(self.webhook)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigurationError(f"{where}: webhook must be a URL of http or https")
        return Hook(self.webhook, self._key(where, environment) if self.secret else b"")

    def _key(self, where: str, environment: Mapping[str, str]) -> bytes:
        kind, _, name = self.secret.partition(":")
        if kind == "env" and environment.get(name):
            text = environment[name]
        elif kind == "file" and name:
            try:
                text = Path(name).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{where}: secret {name} cannot be read ({error})") from None
        else:
            raise ConfigurationError(f"{where}: secret must be env:NAME, of a variable that is set, or file:PATH")
        if not text:
            raise ConfigurationError(f"{where}: the secret is empty")
        if text.startswith("whsec_"):
            try:
                return base64.b64decode(text.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                raise ConfigurationError(f"{where}: what follows whsec_ in the secret is not base64") from None
        return text.encode()
