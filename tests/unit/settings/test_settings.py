"""Tests of the settings: environment over file over defaults, and errors for every mistake."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from tallystream.errors import ConfigurationError
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import Settings
from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = ROOT / "config" / "tallystream.toml"


def written(folder: Path, text: str) -> Path:
    """Write a configuration, and return its path."""
    path = folder / "tallystream.toml"
    path.write_text(text)
    return path


def test_the_shipped_file_states_the_defaults():
    """`config/tallystream.toml` has every setting, with the same default as the code."""
    shipped, defaults = load(SHIPPED, {}), Settings()
    sections = ("redis", "worker", "serve", "archive", "snapshot")
    for section in sections:
        assert getattr(shipped, section) == getattr(defaults, section)
    assert shipped == defaults
    stated = tomllib.loads(SHIPPED.read_text())
    assert {s: set(stated[s]) for s in sections} == {
        s: {setting.name for setting in fields(getattr(defaults, s))} for s in sections
    }
    assert all(metric.description for metric in shipped.rules.metric.values())


def test_without_a_file_there_are_defaults(tmp_path, monkeypatch):
    """Without a file the settings are the defaults."""
    monkeypatch.chdir(tmp_path)
    assert load(None, {}) == Settings(states_rules=False, states_metrics=False)


def test_a_file_is_found(tmp_path, monkeypatch):
    """`tallystream.toml` in the working folder is read without --config."""
    written(tmp_path, "[serve]\nport = 9000\n[metric.sale]\n")
    monkeypatch.chdir(tmp_path)
    settings = load(None, {})
    assert settings.serve.port == 9000
    assert set(settings.rules.metric) == {"sale"}


def test_the_environment_wins(tmp_path):
    """A variable `TALLYSTREAM_<SECTION>_<SETTING>` overrides the file, and has the type of the setting."""
    file = written(tmp_path, "[redis]\nurl = 'redis://file'\n[worker]\nmax_keys = 500\nclaim_idle = 1.0\n")
    environment = {"TALLYSTREAM_REDIS_URL": "redis://environment", "TALLYSTREAM_WORKER_CLAIM_IDLE": "2.5"}
    settings = load(file, environment)
    assert settings.redis.url == "redis://environment"
    assert (settings.worker.claim_idle, settings.worker.max_keys) == (2.5, 500)


def test_a_list_in_the_environment(tmp_path):
    """A list in a variable is separated by commas or spaces; printed settings show no token."""
    environment = {
        "TALLYSTREAM_SERVE_ORIGINS": "https://a.example, http://b.example:8080",
        "TALLYSTREAM_SERVE_HOSTS": "counts.internal",
        "TALLYSTREAM_SERVE_READ_TOKEN": "not to be shown",
    }
    serve = load(written(tmp_path, ""), environment).serve
    assert serve.origins == ("https://a.example", "http://b.example:8080")
    assert (serve.hosts, serve.read_token) == (("counts.internal",), "not to be shown")
    assert "not to be shown" not in repr(serve)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[worker]\nmax_keys = 5\n", ["worker.max_keys", "100 to 100,000", "5"]),
        ("[worker]\nmax_keys = 'many'\n", ["int", "worker.max_keys"]),
        ("[worker]\ncolour = 1\n", ["colour", "worker"]),
        ("[colour]\n", ["colour"]),
        ("[redis]\npartitions = 2000\n", ["redis.partitions", "1 to 1,024", "2,000"]),
        ("[redis]\nnamespace = 'a{b'\n", ["redis.namespace", "braces"]),
        ("[serve]\nport = 70000\n", ["serve.port", "0 to 65,535", "70,000"]),
        ("[serve]\norigins = ['https://a.example/']\n", ["serve.origins", "https://example.com", "https://a.example/"]),
        ("[serve]\nhosts = ['a:80']\n", ["serve.hosts", "a:80", "without port"]),
        ("[metric.View]\n", ["[metric.View]", "a-z"]),
        ("[metric.view]\ncolour = 'red'\n", ["colour", "metric"]),
        ("[worker\n", []),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, parts):
    """An error has the file, the setting, the value and the allowed values."""
    file = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as refused:
        load(file, {})
    for part in [str(file), *parts]:
        assert part in str(refused.value)


@pytest.mark.parametrize("text", [b"\xff\xfe[\x00", b"a = " + b"[" * 100_000], ids=["encoding", "nested"])
def test_a_file_that_is_no_text(tmp_path, text):
    """A file in another encoding, or nested too deep, is a `ConfigurationError` with its name."""
    file = tmp_path / "tallystream.toml"
    file.write_bytes(text)
    with pytest.raises(ConfigurationError, match=r"tallystream\.toml"):
        load(file, {})


def test_a_missing_file_is_named(tmp_path):
    """A missing file that --config names is an error with advice."""
    with pytest.raises(ConfigurationError, match=r"absent\.toml: cannot be read .*--config"):
        load(tmp_path / "absent.toml", {})


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("TALLYSTREAM_WORKER_MAX_KEYS", "many", ["TALLYSTREAM_WORKER_MAX_KEYS", "whole number", "'many'"]),
        ("TALLYSTREAM_WORKER_MAX_KEYS", "1.5", ["TALLYSTREAM_WORKER_MAX_KEYS", "whole number"]),
        ("TALLYSTREAM_WORKER_CLAIM_IDLE", "", ["TALLYSTREAM_WORKER_CLAIM_IDLE", "number"]),
        ("TALLYSTREAM_WORKER_CLAIM_IDLE", "nan", ["worker.claim_idle", "0.1 to 86,400"]),
        ("TALLYSTREAM_WORKER_PROCESSES", "0", ["environment", "worker.processes", "1 to 256", "0"]),
    ],
)
def test_a_mistake_in_the_environment_is_named(tmp_path, variable, value, parts):
    """An error has the variable or setting, and the allowed values."""
    with pytest.raises(ConfigurationError) as refused:
        load(written(tmp_path, ""), {variable: value})
    for part in parts:
        assert part in str(refused.value)


def test_the_consumer_is_named_after_the_host():
    """A worker without a name uses that of the host, so it finds its pending entries after a restart."""
    assert Settings().worker.consumer
