"""Every list of the configuration is a set: an item that is listed twice is refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args, get_origin, get_type_hints

import pytest

from tallystream.errors import ConfigurationError
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Ratio, Rules, read
from tallystream_worker.settings.load import SECTIONS, load

METRICS = "[metric.view]\nwindows = ['hour', 'day']\n[metric.like]\n"
TWICE = {
    "metric.windows": ("[metric.view]\nwindows = ['day', 'hour', 'day']\n", "[metric.view] windows: day"),
    "ratio.of": (METRICS + "[ratio.r]\nof = ['like', 'like']\nby = ['view']\n", "[ratio.r]: of: like"),
    "ratio.by": (METRICS + "[ratio.r]\nof = ['like']\nby = ['view', 'like', 'view']\n", "[ratio.r]: by: view"),
    "rules.alert": (METRICS + "[[alert]]\nname = 'a'\nmetric = 'view'\nabove = 1\n" * 2, "the same name 'a'"),
    "serve.hosts": ("[serve]\nhosts = ['a.example', 'b.example', 'A.example']\n", "serve.hosts: a.example"),
    "serve.origins": ("[serve]\norigins = ['*', '*']\n", "serve.origins: *"),
}


def lists() -> set[str]:
    """Return the names of all settings that are lists."""
    found = {f"{name}.{each.name}" for name, kind in SECTIONS.items() for each in fields(kind) if each.default == ()}
    for name, struct in {"metric": Metric, "ratio": Ratio, "rules": Rules, "alert": Alert}.items():
        for field, hint in get_type_hints(struct).items():
            if tuple in (get_origin(hint), *map(get_origin, get_args(hint))):
                found.add(f"{name}.{field}")
    return found - {"rules.retracted"}  # not a setting: a rebuild adds them


def test_every_list_is_checked_here():
    """The cases below include each list of the configuration."""
    assert lists() == set(TWICE)


@pytest.mark.parametrize(("text", "named"), TWICE.values(), ids=TWICE)
def test_an_item_that_is_listed_twice(tmp_path, text, named):
    """A configuration with an item twice in a list is refused, and the message names the setting and the item."""
    file = tmp_path / "tallystream.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load(file, {})
    assert named in str(refused.value)
    assert "twice" in str(refused.value) or "two alerts" in str(refused.value)


def test_lists_of_the_environment():
    """A list of a variable is a set like that of the file."""
    with pytest.raises(ConfigurationError, match=r"environment: serve\.hosts: a is listed twice"):
        load(None, {"TALLYSTREAM_SERVE_HOSTS": "a, b, a"})


def test_published_lists():
    """Published rules with an item twice in a list are refused."""
    with pytest.raises(ConfigurationError, match=r"not valid: \[metric.view\] windows: day is listed twice"):
        read(b'{"metric":{"view":{"windows":["day","day"]}}}')
