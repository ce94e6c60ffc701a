"""An `[[alert]]` table of the configuration: its condition is published to readers, its webhook is not."""

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
    """The target of an alert's notifications: the webhook, and the key that signs them; empty for no signature."""

    url: str
    """The http or https URL to which notifications are posted."""

    key: bytes = field(default=b"", repr=False)
    """The key that notifications are signed with, decoded if its text begins with `whsec_`; empty for no signature."""


class AlertTable(Alert, frozen=True, forbid_unknown_fields=True):
    """An `[[alert]]` table: the fields of the condition, a webhook, and the place of its secret; both may be empty."""

    webhook: str = ""
    """URL to which notifications are posted; empty if the alert is only logged."""

    secret: str = ""
    """Source of the signing key: `env:NAME` or `file:PATH`; empty if notifications are not signed."""

    @property
    def condition(self) -> Alert:
        """The `Alert` that is published to every reader: all fields except `webhook` and `secret`."""
        return Alert(
            self.name, self.metric, self.subject, self.window, self.over, self.rate, self.above, self.below, self.clear
        )

    def hook(self, environment: Mapping[str, str] | None) -> Hook | None:
        """Return the target of the notifications, with the secret read as its key; `None` if there is no webhook.

        If the webhook has no secret, the key is empty: notifications are not signed.

        Args:
            environment: Variables, for a secret of the form `env:NAME`; `None` reads no secret, and only checks its
                form: then the key is empty.

        Raises:
            ConfigurationError: the URL is not http or https, or has no host or no valid port; there is a secret without
                a webhook; the secret is neither `env:NAME` nor `file:PATH`, its variable is not set, its file cannot be
                read, it is empty, or it begins with `whsec_` and the rest is not base64.
        """
        where = f"[[alert]] {self.name[:64]!r}"
        if not self.webhook:
            if self.secret:
                raise ConfigurationError(f"{where}: a secret needs a webhook: set webhook, or remove secret")
            return None
        try:
            url = urlsplit(self.webhook)
            is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise ConfigurationError(f"{where}: webhook must be an http or https URL with a valid host and port")
        return Hook(self.webhook, self._key(where, environment) if self.secret else b"")

    def _key(self, where: str, environment: Mapping[str, str] | None) -> bytes:
        kind, _, name = self.secret.partition(":")
        if environment is None and kind in ("env", "file") and name:
            return b""
        if kind == "env" and environment and environment.get(name):
            text = environment[name]
        elif kind == "file" and name:
            try:
                text = Path(name).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{where}: the secret file {name} cannot be read ({error})") from None
        else:
            raise ConfigurationError(f"{where}: secret must be env:NAME, with a variable that is set, or file:PATH")
        if not text:
            raise ConfigurationError(f"{where}: the secret is empty")
        if text.startswith("whsec_"):
            try:
                return base64.b64decode(text.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                raise ConfigurationError(f"{where}: the text after whsec_ in the secret is not base64") from None
        return text.encode()
