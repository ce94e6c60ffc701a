"""Tests that the architecture page agrees with the code, and that class names are unique."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DISTRIBUTIONS = {
    "tallystream": ROOT / "producer" / "tallystream",
    "tallystream_worker": ROOT / "worker" / "tallystream_worker",
    "tallystream_plan": ROOT / "plan" / "tallystream_plan",
}


AWAITABLE = {"Producer", "Totals"}
"""Classes with an asyncio version of the same name in `tallystream.aio`."""


def packages(root: Path) -> set[str]:
    """Return the dotted names of the packages below a folder, without the name of the root."""
    return {".".join(init.parent.relative_to(root).parts) for init in root.rglob("__init__.py")} - {""}


def test_every_package_has_a_sentence():
    """The tree on the page lists each package once, and no other; the folder of the dashboard has no code."""
    listed = re.findall(r"^\| `([\w.]+)` \| (?:.+)\. \|$", PAGE, flags=re.MULTILINE)
    there = {name for root in DISTRIBUTIONS.values() for name in packages(root)} | {"tallystream"}
    assert sorted(listed) == sorted(there)


def test_the_layers_on_the_page_are_those_that_are_checked():
    """The layers on the page are the layers of the import contracts."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layered = [contract for contract in contracts if contract["type"] == "layers"]
    drawn = "\n\n".join(
        "\n".join([each["containers"][0], *("    " + layer for layer in each["layers"])]) for each in layered
    )
    assert f"```text\n{drawn}\n```" in PAGE
    assert all(each["exhaustive"] for each in layered), "a module outside every layer fails"
    assert any(each["type"] == "acyclic_siblings" for each in contracts)


def test_the_glossary_is_short():
    """The glossary has at most 40 words, each once."""
    words = re.findall(r"^\| ([^|]+) \| .+ \|$", PAGE.split("## Words")[1], flags=re.MULTILINE)[1:]
    words = [word.strip() for word in words if not word.startswith("---")]
    assert len(words) == len(set(words)) <= 40


def test_every_decision_is_in_the_index():
    """The index lists each page once, with its title and a status."""
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\(([\w.-]+)\) \| (.+) \| (.+) \|$", index, flags=re.MULTILINE)
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    assert [page.name for page in pages] == [file for _, file, _, _ in rows]
    for page, (number, _, title, status) in zip(pages, rows, strict=True):
        heading = page.read_text(encoding="utf-8").splitlines()[0]
        assert heading == f"# {number}: {title}", page.name
        assert status.startswith(("accepted", "superseded", "rejected")), page.name


def test_no_public_class_name_twice():
    """No two public classes have the same name, except a class and its asyncio version."""
    places = defaultdict(list)
    for root in DISTRIBUTIONS.values():
        for file in root.rglob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(file.relative_to(ROOT))
    twice = {name: files for name, files in places.items() if len(files) > 1 and name not in AWAITABLE}
    assert twice == {}
