"""Tests of the options of the command line."""

from __future__ import annotations

import typing

import pytest

from tallystream_worker.cli.main import app
from tallystream_worker.cli.options import whole_number

COMMANDS = sorted(name for name in app if not name.startswith("-"))


@pytest.mark.parametrize("command", COMMANDS)
def test_whole_numbers_are_never_rounded(command):
    """Every whole-number option rejects 1.5, which the option parser itself would round to 2."""
    for sub in (app[command], *(app[command][name] for name in app[command] if not name.startswith("-"))):
        for argument in sub.assemble_argument_collection():
            if argument.hint is int or int in typing.get_args(argument.hint):
                assert argument.parameter.converter is whole_number, (command, argument.name)


@pytest.mark.parametrize("amount", ["1.5", "0.4", "1e3", "", "one"])
def test_an_amount_that_is_no_whole_number_is_refused(amount, capsys):
    """`emit` rejects an amount that is not a whole number, with an error, and counts nothing."""
    with pytest.raises(SystemExit) as ended:
        app(["emit", "view", "a", "--amount", amount, "--redis", "redis://127.0.0.1:1"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "whole number" in told.out + told.err
