"""Tests of the options of the command line."""

from __future__ import annotations

import math
import typing

import pytest

from tallystream.errors import ConfigurationError
from tallystream_worker.cli.main import app
from tallystream_worker.cli.moments import parse_moment
from tallystream_worker.cli.options import Where, current_url, whole_number

COMMANDS = sorted(name for name in app if not name.startswith("-"))


@pytest.mark.parametrize("command", COMMANDS)
def test_whole_numbers_are_never_rounded(command):
    """Every whole-number option rejects 1.5, which the option parser itself would round to 2."""
    for sub in (app[command], *(app[command][name] for name in app[command] if not name.startswith("-"))):
        for argument in sub.assemble_argument_collection():
            if argument.hint is int or int in typing.get_args(argument.hint):
                assert argument.parameter.converter is whole_number, (command, argument.name)


CHECKED_LATER = {"--amount", "--at"}
"""Numbers of an event, which `emit` checks with the rest of the event."""

ANY = {"--seed"}
"""Numbers without bounds."""


@pytest.mark.parametrize("command", COMMANDS)
def test_numbers_have_bounds(command):
    """Every option that is a number rejects a number below its bounds, above them, and NaN, with "must be"."""
    for sub in (app[command], *(app[command][name] for name in app[command] if not name.startswith("-"))):
        for argument in sub.assemble_argument_collection():
            kinds = {argument.hint, *typing.get_args(argument.hint)} & {int, float}
            if not kinds or argument.name in CHECKED_LATER | ANY:
                continue
            (check,) = argument.parameter.validator
            for value in (-1, -math.inf, math.nan, *((math.inf,) if float in kinds else ())):
                with pytest.raises(ValueError, match=r"^must be "):
                    check(argument.hint, value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ingest", "a.log", "--processes", "0"], "must be 1 to 256, not 0"),
        (["ingest", "a.log", "--processes=-1"], "must be 1 to 256, not -1"),
        (["worker", "--processes", "0"], "must be 1 to 256, not 0"),
        (["plan", "--events-per-second", "1", "--subjects", "1", "--partitions", "0"], "must be 1 to 1,024, not 0"),
        (["plan", "--events-per-second", "nan", "--subjects", "1"], "must be more than 0"),
        (["rebuild", "--partitions", "2000"], "must be 1 to 1,024, not 2000"),
        (["serve", "--port", "70000"], "must be 0 to 65,535, not 70000"),
        (["demo", "--events", "0"], "must be at least 1, not 0"),
        (["top", "view", "-n", "0"], "must be at least 1, not 0"),
        (["archive", "a", "--every", "0"], "must be 0.1 to 86,400, not 0"),
        (["audit", "--sample", "0"], "must be more than 0 and at most 1, not 0"),
    ],
)
def test_a_number_out_of_bounds_is_an_error_of_its_option(arguments, words, capsys):
    """A number out of bounds ends the command with status 2, before it connects, and names option and bounds."""
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    assert ended.value.code == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in told
    assert next(word for word in reversed(arguments) if word.startswith("-")).partition("=")[0] in told or "nan" in told


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e12", "0001-01-01"])
def test_a_moment_out_of_bounds_is_refused(text):
    """A moment must lie between the years 1970 and 9999."""
    with pytest.raises(ConfigurationError, match="--from: must "):
        parse_moment("--from", text)


@pytest.mark.parametrize("amount", ["1.5", "0.4", "1e3", "", "one"])
def test_an_amount_that_is_no_whole_number_is_refused(amount, capsys):
    """`emit` rejects an amount that is not a whole number, with an error, and counts nothing."""
    with pytest.raises(SystemExit) as ended:
        app(["emit", "view", "a", "--amount", amount, "--redis", "redis://127.0.0.1:1"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "whole number" in told.out + told.err


def test_messages_show_no_password_of_the_url(tmp_path, monkeypatch):
    """The URL that messages name has no password, also if it was in the options."""
    monkeypatch.chdir(tmp_path)
    Where(redis="redis://host:1?password=secret&db=1").stated()
    assert current_url() == "redis://host:1?db=1"
