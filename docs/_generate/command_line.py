"""Writes `docs/command-line.md` from the commands of `tallystream` and their options.

python -m docs._generate.command_line
"""

from __future__ import annotations

from pathlib import Path

from tallystream_worker.cli.main import app

PAGE = Path(__file__).parents[1] / "command-line.md"

_HEAD = """# Command line

Every command of `tallystream` with its options. `tallystream COMMAND --help` prints the same text.

A command finds the server by `--redis`, by `TALLYSTREAM_REDIS_URL`, or in the configuration. The exit status is 0 only
if the command did what it was asked to do, 1 if it could not, and 2 if an argument is wrong. Commands that print data
take `--json`. Ctrl-C loses nothing. It ends a command with status 130; a command that runs until Ctrl-C, such as
`worker` or one with `--live`, ends with its own status, which is 0 if nothing failed.

This page is generated: `python -m docs._generate.command_line`.
"""


def page() -> str:
    """Return the page."""
    text: str = app.generate_docs(output_format="markdown")
    _, _, commands = text.partition("## Table of Contents")
    return _HEAD + "\n## Commands" + commands.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
