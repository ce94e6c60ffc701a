"""The log events of the product: stable names, listed with their fields in `docs/operations.md`."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = re.compile(r"[a-z_]+\.[a-z_]+")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
BOUND = {"alert", "namespace", "service", "stream"}
"""Fields that a logger may carry, so that no call names them."""
STATES = {"StateLog": ("failed", "works"), "StreamStates": ("begins", "ends")}
"""Classes that log two events: an error with a `problem`, and an info when the problem is over."""
OWN = "process/state_log.py"
"""The module that logs the events which it is constructed with."""


def test_the_list_of_log_events_is_complete():
    """Each event that the code can log is in the list with its level, and the list has no other."""
    assert {(name, level) for name, level, _ in logged()} == {(name, level) for name, (level, _) in listed().items()}


def test_the_list_names_the_fields_of_each_event():
    """The list has every field that a call passes, and no field that neither a call nor its logger passes."""
    found = listed()
    for name, _, fields in logged():
        if fields is None:
            continue
        assert found[name][1] >= fields, f"{name} is listed without {sorted(fields - found[name][1])}"
        assert found[name][1] <= fields | BOUND, f"{name} has no fields {sorted(found[name][1] - fields - BOUND)}"


def test_log_events_are_dotted_names():
    """Every event is a constant of the form `thing.what_happened`, so that it can be searched and alerted on."""
    for path, call in calls():
        event = call.args[0]
        assert isinstance(event, ast.Constant), f"{path}:{call.lineno}: the event is not a constant"
        assert NAME.fullmatch(str(event.value).split()[0]), f"{path}:{call.lineno}: {event.value}"


def listed() -> dict[str, tuple[str, set[str]]]:
    """Return level and fields of each event in the table of `docs/operations.md`."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    return {name: (level, set(re.findall(r"`(\w+)`", fields))) for name, level, fields in rows}


def logged() -> Iterator[tuple[str, str, set[str] | None]]:
    """Yield name, level and fields of each event that the code can log; fields are `None` if they vary."""
    for _, call in calls():
        assert isinstance(call.func, ast.Attribute)
        text = str(ast.literal_eval(call.args[0]))
        fields = keywords(call)
        in_text = set(re.findall(r"(\w+)=%", text))
        yield text.split(maxsplit=1)[0], call.func.attr, None if fields is None else fields | in_text
    for path in sources():
        for call in called(path):
            if isinstance(call.func, ast.Name) and call.func.id in STATES and not str(path).endswith(OWN):
                begins, ends = state_events(call)
                yield begins, "error", None
                yield ends, "info", set()
                for keyword in call.keywords:
                    if keyword.arg == "started":
                        yield str(ast.literal_eval(keyword.value)), "info", set()


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Yield each call of a method that logs a line."""
    for path in sources():
        for call in called(path):
            if (
                isinstance(call.func, ast.Attribute)
                and call.func.attr in LEVELS
                and "log" in ast.unparse(call.func.value)
                and not str(path).endswith(OWN)
            ):
                yield path, call


def keywords(call: ast.Call) -> set[str] | None:
    """Return the names of a call's keyword arguments that are fields; `None` if it unpacks a mapping."""
    names = [keyword.arg for keyword in call.keywords]
    return None if None in names else {str(name) for name in names} - {"exc_info"}


def state_events(call: ast.Call) -> tuple[str, str]:
    """Return the two events that the constructor of a state is given."""
    assert isinstance(call.func, ast.Name)
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    both = [named.get(name) for name in STATES[call.func.id]]
    if None in both:
        both = list(call.args[1:3])
    first, second = (str(ast.literal_eval(each)) for each in both if each is not None)
    return first, second


def called(path: Path) -> Iterator[ast.Call]:
    """Yield the calls of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def sources() -> list[Path]:
    """Return the modules of the three distributions."""
    folders = ["producer/tallystream", "worker/tallystream_worker", "plan/tallystream_plan"]
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
