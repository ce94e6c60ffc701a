"""Writes `docs/configuration.md` out of the settings' types and the shipped `config/tallystream.toml`.

python -m docs._generate.configuration
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from tallystream_worker.settings.load import SECTIONS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "config" / "tallystream.toml"
PAGE = ROOT / "docs" / "configuration.md"

_HEAD = """# Configuration

One file, `tallystream.toml` or `config/tallystream.toml` in the working folder, or the one named with `--config`. Every
setting may also come from the environment, and what the command line says wins over both.
`tallystream check FILE` reads a file, and says what it stores.

This page is made from the settings themselves and from the comments of `config/tallystream.toml`, which has every
setting with its default: `python -m docs._generate.configuration`.
"""


def page(source: str) -> str:
    """Return the page for a configuration file with comments."""
    parts = [_HEAD]
    for section, kind in SECTIONS.items():
        stated = _settings(source, section)
        intro = " ".join((kind.__doc__ or "").split())
        parts.append(f"## `[{section}]`\n\n{intro}\n\n| setting | default | | environment |\n| --- | --- | --- | --- |")
        for setting in fields(kind):
            value, about = stated[setting.name]
            variable = f"TALLYSTREAM_{section}_{setting.name}".upper()
            parts[-1] += f"\n| `{setting.name}` | `{value}` | {_cell(about)} | `{variable}` |"
        parts[-1] += "\n"
    rows = "\n".join(f"| `{name}` | {_cell(about)} |" for name, about in _rules(source))
    parts.append(
        "## `[metric.NAME]`\n\nWhat is counted. A metric that is not declared is refused at emit, and parked by the "
        "worker. [Rules](rules.md) has the bytes of each, and what a change on a live system does.\n\n"
        f"| rule | |\n| --- | --- |\n{rows}\n"
    )
    parts.append(
        "## `[ratio.NAME]`\n\n`of` and `by`, lists of metrics: a derived figure, shown with every subject, 0 where the "
        "denominator is 0.\n\n## `zone`\n\n"
        'Where days and months begin, such as `"Europe/Vienna"`; default `"UTC"`. It stands before the first section.\n'
    )
    return "\n".join(parts)


def _settings(source: str, section: str) -> dict[str, tuple[str, str]]:
    """Return value and comment of each setting of a section; a comment may go on in the next settings' lines."""
    found: dict[str, tuple[str, str]] = {}
    inside, last = False, None
    for line in source.splitlines():
        if line.startswith("["):
            inside, last = line.startswith(f"[{section}]"), None
        elif inside and (stated := re.fullmatch(r"(\w+)\s*=\s*(.*?)(?:\s+#\s*(.*))?", line)):
            last = stated[1]
            found[last] = (stated[2], stated[3] or "")
        elif inside and last is not None and (more := re.fullmatch(r"\s*#\s*(.+)", line)):
            found[last] = (found[last][0], f"{found[last][1]} {more[1]}".strip())
        else:
            last = None
    return found


def _rules(source: str) -> list[tuple[str, str]]:
    """Return name and meaning of each rule of a metric, from the comment before the first one."""
    block = source[source.index("# What is counted") : source.index("\n[metric.")]
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if begins := re.fullmatch(r"#   ([a-z_]+(?:, [a-z_]+)*) +(\S.*)", line):
            found.append((begins[1], begins[2]))
        elif found and (goes_on := re.fullmatch(r"#    +(\S.*)", line)):
            found[-1] = (found[-1][0], f"{found[-1][1]} {goes_on[1]}")
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
