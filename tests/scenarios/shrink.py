"""Shortens a script that fails: removes steps, metrics and events as long as the script still fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules
from tests.scenarios.move import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.scenarios.script import Script


def shortest(script: Script, fails: Callable[[Script], bool], seconds: float = 120) -> Script:
    """Return a shorter script that still fails, or the script itself.

    Args:
        script: A script that fails.
        fails: Plays a script and returns whether it fails.
        seconds: No candidate is tried after this time.
    """
    deadline = time.monotonic() + seconds
    tried = {script.text()}
    progress = True
    while progress:
        progress = False
        for candidate in _candidates(script):
            if time.monotonic() > deadline:
                return script
            if candidate.text() in tried:
                continue
            tried.add(candidate.text())
            if fails(candidate):
                script, progress = candidate, True
                break
    return script


def _candidates(script: Script) -> Iterator[Script]:
    """Yield shorter scripts, those that remove most first."""
    steps = script.steps
    size = len(steps) // 2
    while size >= 1:
        for first in range(0, len(steps), size):
            yield msgspec.structs.replace(script, steps=steps[:first] + steps[first + size :])
        size //= 2
    for number, step in enumerate(steps):
        for shorter in decode(step).shorter():
            yield msgspec.structs.replace(script, steps=[*steps[:number], encode(shorter), *steps[number + 1 :]])
    if script.partitions > 1:
        yield msgspec.structs.replace(script, partitions=1)
    for rules in _simpler(script.rules, str(steps)):
        yield msgspec.structs.replace(script, rules=rules)


def _simpler(rules: Rules, used: str) -> Iterator[Rules]:
    """Yield rules without an unused metric, or with one setting of a metric left out."""
    for name, metric in rules.metric.items():
        if f"'{name}'" not in used and len(rules.metric) > 1:
            rest = {other: each for other, each in rules.metric.items() if other != name}
            yield msgspec.structs.replace(rules, metric=rest)
        for setting in msgspec.to_builtins(metric):
            default = getattr(Metric(), setting)
            try:
                simpler = msgspec.structs.replace(metric, **{setting: default})
                yield Rules(rules.metric | {name: simpler}, zone=rules.zone)
            except ConfigurationError:
                continue
