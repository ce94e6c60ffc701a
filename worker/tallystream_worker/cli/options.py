"""The options that commands share, and the settings that result from them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from tallystream.client.connect import without_credentials
from tallystream.errors import ConfigurationError
from tallystream_worker.server.data_folder import snapshot_of
from tallystream_worker.settings.load import DEFAULT_FILES, found_file, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cyclopts import Token

    from tallystream_worker.settings.settings import Settings

DAY: Final = 86_400
"""Seconds in a day: the most that almost every option with a time in seconds accepts."""

MAX_PORT: Final = 65_535
"""The largest port number."""

MAX_PROCESSES: Final = 256
"""Most processes of a command."""

_last_url = ""
_last_settings: Settings | None = None
_last_file: tuple[Path | None, frozenset[str]] = (None, frozenset())
"""The configuration file that was read last, `None` for none, and the metrics that it declares."""


def whole_number(_: object, tokens: Sequence[Token]) -> int:
    """Return the value of an option as a whole number, which may be negative; reject any other, such as `1.5`.

    A cyclopts converter: the value is that of the first token.

    Raises:
        ValueError: the text is not a whole number.
    """
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"must be a whole number, not {tokens[0].value}") from None


def whole(help: str, *bounds: int, name: str | list[str] | None = None) -> Parameter:
    """Return the declaration of an option that is a whole number from the first bound to the second, both allowed.

    With one bound there is no upper limit, and without bounds there is no limit.
    """
    return Parameter(name=name, converter=whole_number, validator=_within(*bounds) if bounds else (), help=help)


def number(help: str, least: float, most: float) -> Parameter:
    """Return the declaration of an option that is a number from `least` to `most`, both allowed."""
    return Parameter(validator=_within(least, most), help=help)


def positive(help: str, most: float) -> Parameter:
    """Return the declaration of an option that is a number of more than 0 and at most `most`."""

    def check(_: object, value: float | None) -> None:
        if value is not None and not 0 < value <= most:
            raise ValueError(f"must be more than 0 and at most {most:,}, not {value}")

    return Parameter(validator=check, help=help)


def _within(least: float, most: float | None = None) -> Callable[[object, float | None], None]:
    """Return a cyclopts validator, which raises `ValueError` for NaN or a value out of bounds; it accepts `None`."""
    wanted = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"

    def check(_: object, value: float | None) -> None:
        if value is not None and not least <= value <= (math.inf if most is None else most):
            raise ValueError(f"must be {wanted}, not {value}")

    return check


def flag(help: str, *, name: str | None = None) -> Parameter:
    """Return the declaration of an option without a `--no-...` or `--empty-...` form, whose help shows no default.

    It is for options that take no value, and for lists; the type of the option decides which of the two it is.
    """
    return Parameter(name=name, negative="", show_default=False, help=help)


RedisUrl = Annotated[str | None, Parameter(help="URL of Redis or Valkey [env: TALLYSTREAM_REDIS_URL]")]
Config = Annotated[
    Path | None, Parameter(help="configuration file; default tallystream.toml or config/tallystream.toml, if it exists")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """The options that name the server and the configuration file."""

    redis: RedisUrl = None
    config: Config = None

    def settings(self) -> Settings:
        """Read and return the settings (see `stated`); if they name no snapshot, add the one of `tallystream up`.

        That is the snapshot which `tallystream up` takes of this server, if one is found: see `snapshot_of`. The result
        is kept for `current_settings`.

        Raises:
            ConfigurationError: the file or a variable is not valid.
            ValueError: see `load`.
        """
        global _last_settings  # noqa: PLW0603  # so that an error can name the snapshot
        settings = self.stated()
        if not settings.snapshot.url and (found := snapshot_of(settings.redis.url)):
            settings = replace(settings, snapshot=replace(settings.snapshot, url=found))
        _last_settings = settings
        return settings

    def stated(self) -> Settings:
        """Read and return the settings: command line over environment over file over defaults; see `load`.

        The URL of the server is kept for `current_url`, and the file for `how_to_declare`.

        Raises:
            ConfigurationError: the file or a variable is not valid.
            ValueError: see `load`.
        """
        global _last_url, _last_file  # noqa: PLW0603  # so that an error can name the server and the file
        file = self.config or found_file()
        settings = load(file)
        _last_file = file, frozenset(settings.rules.metric if settings.states_metrics else ())
        if self.redis is not None:
            settings = replace(settings, redis=replace(settings.redis, url=self.redis))
        _last_url = without_credentials(settings.redis.url)
        return settings

    @property
    def names_a_server(self) -> bool:
        """Whether `--redis` is given or `TALLYSTREAM_REDIS_URL` is set; the configuration file does not matter."""
        return self.redis is not None or "TALLYSTREAM_REDIS_URL" in os.environ


@Parameter(name="*")
@dataclass(frozen=True)
class Tenants:
    """The options that name the server and one configuration file for each namespace; `settings` reads the files.

    `redis` is the URL of the server of all namespaces; `None` for that of the environment, or else of each file.
    `config` has the paths of the files; if it is empty, the default file is read.
    """

    redis: RedisUrl = None
    config: Annotated[
        tuple[Path, ...],
        flag("configuration file; repeat for several namespaces; default tallystream.toml or config/tallystream.toml"),
    ] = ()

    def settings(self) -> list[Settings]:
        """Read and return the settings of each namespace, in the order of the `--config` options.

        Without `--config`, the result has one element, of the default file. `--redis` replaces the server of all.
        Unlike `Where.settings`, this does not add the snapshot of `tallystream up`.

        Raises:
            ConfigurationError: a file or a variable is not valid, or two files have the same namespace.
            ValueError: see `load`.
        """
        found = [Where(self.redis, config).stated() for config in self.config or (None,)]
        names = [settings.redis.namespace for settings in found]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(
                    f"--config: several files have the namespace {name!r}; set another [redis] namespace in each, "
                    "and not TALLYSTREAM_REDIS_NAMESPACE, which applies to all"
                )
        return found


def listening(settings: Settings, host: str | None, port: int | None) -> Settings:
    """Return the settings with the address of the read service replaced by --host and --port, if they are given."""
    serve = settings.serve
    serve = replace(serve, host=serve.host if host is None else host, port=serve.port if port is None else port)
    return replace(settings, serve=serve)


def current_url() -> str:
    """Return the server URL without user and password, for error messages.

    The URL is that of the last settings that `Where` or `Tenants` read; empty if the command has read none.
    """
    return _last_url


def current_settings() -> Settings | None:
    """Return the settings that `Where.settings` returned last, for error messages; `None` if it has returned none.

    Settings that a command has read by `Where.stated` or `Tenants.settings` do not count.
    """
    return _last_settings


def how_to_declare(metric: str) -> str:
    """Return what to do about a metric that the published rules do not declare, as a sentence for an error message.

    It names the configuration file that `Where` or `Tenants` read last, or the default one if none was read.
    """
    file, declared = _last_file
    if metric in declared:
        return f"[metric.{metric}] is in {file}, but not in the published rules: restart the worker"
    return f"Add [metric.{metric}] to {file or DEFAULT_FILES[0]} and restart the worker"


Host = Annotated[str | None, Parameter(help="address to listen on; default 127.0.0.1")]
Port = Annotated[int | None, whole("port to listen on; default 8080, 0 for any free one", 0, MAX_PORT)]
LiveView = Annotated[bool, flag("refresh until q or Ctrl-C", name="--live")]
Every = Annotated[float, number("seconds between two refreshes of --live", 0.1, DAY)]
AsJson = Annotated[bool, flag("print JSON for programs", name="--json")]
FromArchive = Annotated[str | None, Parameter(help="folder or URL of the archive; default [archive] url")]
SnapshotUrl = Annotated[
    str | None,
    Parameter(help="SQLite file or database URL; default [snapshot] url, then the snapshot of tallystream up"),
]
AcceptLoss = Annotated[bool, flag("continue although some entries are gone")]
MetricsPort = Annotated[
    int | None, whole("serve /metrics on this port; a worker also serves /healthz and /readyz", 0, MAX_PORT)
]
MetricsHost = Annotated[str, Parameter(help="address to serve metrics on; no token protects them, so keep it private")]
