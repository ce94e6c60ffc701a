"""Writes rules as the TOML of a configuration file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tallystream.rules.metrics import Rules

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(rules: Rules) -> str:
    """Return the text of a configuration file that states these rules: the zone, metrics, ratios and alerts.

    Settings of metrics with their default are left out, and so are unset ones of alerts. The zone, and the subject of
    each alert, are always there. Retractions are no setting, and webhooks are not published: neither is in it.
    """
    return "\n".join(_lines(rules)) + "\n"


def _lines(rules: Rules) -> Iterator[str]:
    yield f"zone = {_value(rules.zone)}"
    for kind, tables in (("metric", rules.metric), ("ratio", rules.ratio)):
        for name, table in tables.items():
            yield from ("", f"[{kind}.{_key(name)}]", *_settings(msgspec.to_builtins(table)))
    for alert in rules.alert:
        yield from ("", "[[alert]]", *_settings(msgspec.to_builtins(alert)))


def _settings(table: Mapping[str, Any]) -> Iterator[str]:
    return (f"{_key(name)} = {_value(value)}" for name, value in table.items() if value is not None)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return _text(value) if isinstance(value, str) else str(value).lower()


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
