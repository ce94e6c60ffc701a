"""The page `docs/findings.md` has the texts of the code."""

from __future__ import annotations

import re
from typing import Final

from tallystream_worker.verify.findings import KINDS, LOST_FIELDS, LOST_KEYS, REBUILD, by_case
from tests.paths import ROOT

PAGE: Final = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
LINKS: Final = {
    "[rebuild](#which-rebuild)": REBUILD,
    "see [lost keys](#lost-keys)": by_case(LOST_KEYS),
    "see [lost fields](#lost-fields)": by_case(LOST_FIELDS),
    "[lost key](#lost-keys)": "lost key",
    "[Count lost entries](archive.md#count-lost-entries)": "docs/archive.md, Count lost entries",
}
"""The links in the tables of the page, and the texts that the code has in their place."""


def rows(head: str) -> list[list[str]]:
    """Return the cells of each row of the tables of the page with this head, with the texts of the code for links."""
    found, is_inside = [], False
    for line in PAGE.splitlines():
        is_inside = line == head or (is_inside and line.startswith("|"))
        if is_inside and line not in (head, "| --- | --- |", "| --- | --- | --- |"):
            for link, text in LINKS.items():
                line = line.replace(link, text)  # noqa: PLW2901  # the same row
            found.append([cell.replace("`", "") for cell in line.strip("| ").split(" | ")])
    return found


def without_quotes(*cells: str) -> list[str]:
    """Return cells without backticks: on the page, these are also around commands."""
    return [cell.replace("`", "") for cell in cells]


def test_the_page_lists_every_finding():
    """The page has each finding with its meaning and its remedy, in order, and no other; likewise the lost keys."""
    kinds = [without_quotes(name, kind.meaning, kind.remedy) for name, kind in KINDS.items()]
    assert rows("| finding | meaning | to mend it |") == kinds
    assert rows("| lost key | to mend it |") == [without_quotes(*case) for case in LOST_KEYS]
    assert rows("| lost field | to mend it |") == [without_quotes(*case) for case in LOST_FIELDS]


def test_the_page_states_which_rebuild():
    """The page names the commands of the remedy that most findings have, in order, and quotes all commands."""
    commands = [command for _, command in rows("| case | command |")]
    assert commands == re.findall(r"tallystream [a-z]+(?: --[a-z]+(?: URL)?)?", REBUILD)
    assert not re.search(r"tallystream |[a-z] --", re.sub(r"`[^`]*`", "", PAGE))
