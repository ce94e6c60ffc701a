"""Reads the settings from a file and the environment; no other module reads values of settings from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping  # noqa: TC003  # msgspec reads the annotations
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Ratio, Rules
from tallystream_worker.settings.alerts import AlertTable  # noqa: TC001  # the same
from tallystream_worker.settings.settings import (
    DEFAULT_RULES,
    ArchiveSettings,
    AuditSettings,
    RedisSettings,
    RetentionSettings,
    ServeSettings,
    Settings,
    SnapshotSettings,
    VerifySettings,
    WorkerSettings,
)

DEFAULT_FILES: Final = ("tallystream.toml", "config/tallystream.toml")
"""The configuration files to look for in the working folder, in this order, if the caller names none."""

SECTIONS: Final = {
    "redis": RedisSettings,
    "worker": WorkerSettings,
    "serve": ServeSettings,
    "retention": RetentionSettings,
    "archive": ArchiveSettings,
    "snapshot": SnapshotSettings,
    "audit": AuditSettings,
    "verify": VerifySettings,
}
"""The settings class of each section of the configuration file."""

RULES: Final = frozenset({"metric", "ratio", "zone", "alert"})
"""The settings and tables of the configuration file that state rules."""

_KINDS: Final = {int: "whole number", float: "number", str: "text"}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The structure of the configuration file, for msgspec; the settings classes check the values."""

    redis: RedisSettings = msgspec.field(default_factory=RedisSettings)
    worker: WorkerSettings = msgspec.field(default_factory=WorkerSettings)
    serve: ServeSettings = msgspec.field(default_factory=ServeSettings)
    retention: RetentionSettings = msgspec.field(default_factory=RetentionSettings)
    archive: ArchiveSettings = msgspec.field(default_factory=ArchiveSettings)
    snapshot: SnapshotSettings = msgspec.field(default_factory=SnapshotSettings)
    audit: AuditSettings = msgspec.field(default_factory=AuditSettings)
    verify: VerifySettings = msgspec.field(default_factory=VerifySettings)
    metric: dict[str, Metric] | None = None
    ratio: dict[str, Ratio] = {}
    zone: str = "UTC"
    alert: tuple[AlertTable, ...] = ()


def load(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read and return the settings: a value of the environment overrides the file, and the file overrides the defaults.

    A variable that is empty counts as a value, and one with an unknown name is ignored. The rules and alerts are read
    from the file only. If there is no file, or it has none of the names in `RULES`, then `Settings.states_rules` is
    false; without `metric`, `Settings.states_metrics` is false.

    Args:
        file: The configuration file; `None` looks for `tallystream.toml`, then `config/tallystream.toml`, and uses the
            defaults if neither exists.
        environment: Variables named `TALLYSTREAM_<SECTION>_<SETTING>`, and those that have secrets of alerts: if one of
            the latter is missing, this is an error.

    Raises:
        ConfigurationError: the file cannot be read or is not TOML, has an unknown setting, a value is not valid, or the
            secret of an alert cannot be read. The message names the file, the environment or the variable. A value of
            the file must be valid even if the environment overrides it.
        ValueError: the webhook of an alert cannot be parsed, for example brackets in it do not enclose an IPv6 address.
    """
    settings = _from_file(file or found_file(), environment)
    for section in SECTIONS:
        settings = replace(settings, **{section: _from_environment(section, getattr(settings, section), environment)})
    return settings


def found_file() -> Path | None:
    """Return the first of `DEFAULT_FILES` that exists in the working folder; `None` if none does."""
    return next((path for path in map(Path, DEFAULT_FILES) if path.is_file()), None)


def _from_file(path: Path | None, environment: Mapping[str, str]) -> Settings:
    if path is None:
        return Settings(states_rules=False, states_metrics=False)
    try:
        text = path.read_bytes()
        stated = msgspec.toml.decode(text)
        _refuse_unknown(stated)
        file = msgspec.toml.decode(text, type=_File)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); name another with --config") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    try:
        metric = DEFAULT_RULES.metric if file.metric is None else file.metric
        rules = Rules(metric, file.ratio, file.zone, tuple(table.condition for table in file.alert))
        hooks = {table.name: hook for table in file.alert if (hook := table.hook(environment)) is not None}
        sections = {section: getattr(file, section) for section in SECTIONS}
        return Settings(
            **sections,
            rules=rules,
            states_rules=not RULES.isdisjoint(stated),
            states_metrics=file.metric is not None,
            hooks=hooks,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _refuse_unknown(stated: dict[str, Any]) -> None:
    # The sections are dataclasses, for which msgspec ignores unknown fields: a misspelt setting would go unnoticed.
    for section, kind in SECTIONS.items():
        known = {setting.name for setting in fields(kind)}
        values = stated.get(section)
        if isinstance(values, dict) and (unknown := values.keys() - known):
            raise ConfigurationError(
                f"{section}.{min(unknown)}: unknown setting; the settings are {', '.join(sorted(known))}"
            )


def _from_environment(section: str, values: Any, environment: Mapping[str, str]) -> Any:
    given: dict[str, Any] = {}
    for setting in fields(values):
        variable = f"TALLYSTREAM_{section}_{setting.name}".upper()
        if (text := environment.get(variable)) is not None:
            kind = type(getattr(values, setting.name))
            try:
                given[setting.name] = kind(text) if kind is not tuple else tuple(text.replace(",", " ").split())
            except ValueError:
                raise ConfigurationError(f"{variable}: must be a {_KINDS[kind]}, not {text!r}") from None
    try:
        return replace(values, **given)
    except ConfigurationError as error:
        raise ConfigurationError(f"environment: {error}") from None
