"""Write `docs/configuration.md` from the types of the settings and from `config/tallystream.toml`.

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

This page is for operators. It lists every setting, its default, and the environment variable that overrides it.

The configuration is one file. The option `--config` names the file. Without this option, programs read
`tallystream.toml` in the working folder. If there is none, they read `config/tallystream.toml`. An environment variable
overrides the file. An option of a command overrides both.

`tallystream check FILE` checks a file, and prints what each metric stores in Redis. It also prints how many bytes a
*subject* takes. A subject is the thing that events are counted for, such as `article:1`.

`config/tallystream.toml` contains every setting with its default. `python -m docs._generate.configuration` writes this
page from the comments of this file.
"""


def page(source: str) -> str:
    """Return the text of the page for a configuration file with comments."""
    parts = [_HEAD]
    for section, kind in SECTIONS.items():
        stated = _settings(source, section)
        intro = _linked(" ".join((kind.__doc__ or "").split()))
        columns = "| setting | default | meaning | variable |\n| --- | --- | --- | --- |"
        parts.append(f"## `[{section}]`\n\n{intro}\n\n{columns}")
        for setting in fields(kind):
            value, about = stated[setting.name]
            variable = f"TALLYSTREAM_{section}_{setting.name}".upper()
            parts[-1] += f"\n| `{setting.name}` | `{value}` | {_cell(about)} | `{variable}` |"
        parts[-1] += "\n"
    rows = "\n".join(f"| `{name}` | {_cell(about)} |" for name, about in _rules(source))
    parts.append(
        "## `[metric.NAME]`\n\nOne section declares one metric: a kind of event, such as `view`. A *rule* is a feature "
        "of a metric, such as a limit. [Rules](rules.md) explains each rule. Before you change a rule, read "
        "[changing rules](changing-rules.md).\n\n"
        "If a producer has read the rules, `emit` refuses an event of a metric that is not declared. Otherwise, a "
        "worker keeps the event as a [dead letter](dead-letters.md), and does not count it.\n\n"
        f"| rule | meaning |\n| --- | --- |\n{rows}\n"
    )
    parts.append(
        "## `[ratio.NAME]`\n\nOne section declares one ratio. Queries for the totals of a subject also return the "
        "ratio. `of` and `by` are lists of metrics. The ratio is the sum of the totals in `of`, divided by the sum of "
        "the totals in `by`. If the divisor is 0, the ratio is 0.\n\n"
        "## `[[alert]]`\n\nOne section declares one alert. [Alerts](alerts.md) lists its settings.\n\n## `zone`\n\n"
        "The time zone in which days and months begin. The default is `UTC`. Use a name of the IANA database, such as "
        '`"Europe/Vienna"`. `"localtime"` is refused. Write this setting before the first section.\n'
    )
    return "\n".join(parts)


def _settings(source: str, section: str) -> dict[str, tuple[str, str]]:
    """Return the value and comment of each setting in a section; following comment lines continue a comment."""
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
    """Return the name and meaning of each metric rule, from the comment before the first `[metric.NAME]` section."""
    block = source[source.index("# The metrics.") : source.index("\n[metric.")]
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if begins := re.fullmatch(r"#   ([a-z_]+(?:, [a-z_]+)*) +(\S.*)", line):
            found.append((begins[1], begins[2]))
        elif found and (goes_on := re.fullmatch(r"#    +(\S.*)", line)):
            found[-1] = (found[-1][0], f"{found[-1][1]} {goes_on[1]}")
    return found


def _cell(text: str) -> str:
    return _linked(text.replace("|", "\\|"))


def _linked(text: str) -> str:
    """Return a text in which the name of each page is a link to the page."""
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", text)


if __name__ == "__main__":
    PAGE.write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
