"""The options that commands share, and what they lead to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream.errors import ConfigurationError
from tallystream_worker.settings.settings import load

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import Settings

_last_url = ""


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Which server, and which configuration."""

    redis: Annotated[str | None, Parameter(help="URL of Redis or Valkey [env: TALLYSTREAM_REDIS_URL]")] = None
    config: Annotated[
        Path | None,
        Parameter(help="configuration; else tallystream.toml or config/tallystream.toml, if there"),
    ] = None

    def settings(self) -> Settings:
        """Return the settings: command line over environment over file over defaults.

        Raises:
            ConfigurationError: names what is wrong.
        """
        global _last_url  # noqa: PLW0603  # so that an error can name the server that it came from
        settings = load(self.config)
        if self.redis is not None:
            settings = replace(settings, redis=replace(settings.redis, url=self.redis))
        _last_url = re.sub(r"//[^@/]*@", "//", settings.redis.url)
        return settings

    @property
    def names_a_server(self) -> bool:
        """Tell whether the user said which server to use, rather than leaving it to the default."""
        return self.redis is not None or "TALLYSTREAM_REDIS_URL" in os.environ


@Parameter(name="*")
@dataclass(frozen=True)
class Tenants:
    """Which server, and the configuration of each namespace that is served."""

    redis: Annotated[str | None, Parameter(help="URL of Redis or Valkey [env: TALLYSTREAM_REDIS_URL]")] = None
    config: Annotated[
        tuple[Path, ...],
        Parameter(
            negative="",
            show_default=False,
            help="configuration; repeated: one for each namespace; else tallystream.toml or config/tallystream.toml",
        ),
    ] = ()

    def settings(self) -> list[Settings]:
        """Return the settings of each namespace.

        Raises:
            ConfigurationError: names what is wrong, or two files of one namespace.
        """
        found = [Where(self.redis, config).settings() for config in self.config or (None,)]
        names = [settings.redis.namespace for settings in found]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(
                    f"--config: several files are of the namespace {name!r}; set [redis] namespace in each, "
                    "and not TALLYSTREAM_REDIS_NAMESPACE, which holds for all"
                )
        return found


def current_url() -> str:
    """Return the URL that the running command talks to, without its password."""
    return _last_url


LiveView = Annotated[
    bool, Parameter(name="--live", negative="", show_default=False, help="keep looking, until q or Ctrl-C")
]
Every = Annotated[float, Parameter(help="seconds between two looks of --live")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="print JSON for programs")]
FromArchive = Annotated[str | None, Parameter(help="folder or URL of the archive; default [archive] url")]
FromSnapshot = Annotated[str | None, Parameter(help="SQLite file or database URL; default [snapshot] url")]
AcceptLoss = Annotated[
    bool, Parameter(negative="", show_default=False, help="go on although a part of the log is gone")
]
MetricsPort = Annotated[
    int | None, Parameter(help="serve its own /metrics on this port; a worker also /healthz and /readyz")
]
MetricsHost = Annotated[str, Parameter(help="the address for them; they ask for no token: keep it inside")]
