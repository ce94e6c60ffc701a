"""A script is assembled from its modules: each of them once, before the file that needs it."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tallystream.storage.scripts import Script
from tests.paths import ROOT

FILES: Final = [*ROOT.glob("producer/**/*.lua"), *ROOT.glob("worker/**/*.lua")]
SCRIPTS: Final = [file for file in FILES if file.read_text().startswith("#!lua")]


def script_of(file) -> Script:
    """Return the `Script` that is assembled from a file."""
    folder = file.parent.parent
    return Script(".".join(folder.relative_to(ROOT).parts[1:]), file.stem)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_module_is_in_a_script_once(file):
    """A script has each module that it requires once, whatever files require it, and begins with `#!lua`."""
    text = script_of(file).text.decode()
    assert text.startswith("#!lua")
    for module in FILES:
        if module not in SCRIPTS:
            assert text.count(module.read_text().rpartition("return ")[0]) <= 1
    required = set(re.findall(r"(?<!function )require\('([\w.]+)'\)", text))
    made = set(re.findall(r"if name == '([\w.]+)' then\n", text))
    assert required == made


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_a_file_states_what_it_is_for(file):
    """The header of a script states its keys, its replies and its invariant; that of a module begins with its name."""
    text = file.read_text()
    if file in SCRIPTS:
        shebang, _, text = text.partition("\n")
        assert shebang in ("#!lua", "#!lua flags=no-writes")
        assert text.startswith(f"-- {file.stem}: ")
        positions = [text.index(part) for part in ("KEYS[1]", "-- Returns {", "-- Invariant: ")]
        assert positions == sorted(positions)
    else:
        assert text.startswith(f"-- {file.stem}: ")
        assert re.search(r"^return ", text, re.MULTILINE)
