"""Every public name has a docstring, and the reference has every public name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import types
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import tallystream
import tallystream_worker
from docs._generate import command_line
from tallystream_worker.cli.main import app
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

FACES = [
    "tallystream",
    "tallystream.aio",
    "tallystream.errors",
    "tallystream.middleware",
    "tallystream.middleware.asgi",
    "tallystream.middleware.django",
    "tallystream.middleware.flask",
    "tallystream.subscribe",
]
"""The modules that applications import."""

REFERENCE = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", [tallystream, tallystream_worker])
def test_every_public_object_of_the_code_has_a_docstring(package):
    """No module, class, function, method or property with a public name is without a docstring."""
    missing = [name for name, thing in public_objects(package) if not inspect.getdoc(thing)]
    assert missing == []


@pytest.mark.parametrize("module", FACES)
def test_the_reference_has_every_public_name(module):
    """The page of the Python API documents every class and function that an application can import."""
    face = importlib.import_module(module)
    for name, thing in public(face):
        if not hasattr(face, "__all__") and thing.__module__ != module:
            continue  # imported, not public here
        documented = {f"{module}.{name}", f"{thing.__module__}.{name}", module, thing.__module__}
        assert any(f":: {each}\n" in REFERENCE for each in documented), f"{module}.{name}"


@pytest.mark.parametrize("name", re.findall(r"autoclass:: (\S+)", REFERENCE))
def test_every_field_of_a_struct_is_explained(name):
    """The docstring of a struct that applications get explains each of its fields."""
    module, _, attribute = name.rpartition(".")
    struct = getattr(importlib.import_module(module), attribute)
    if issubclass(struct, msgspec.Struct):
        fields = [field.name for field in msgspec.structs.fields(struct)]
    elif dataclasses.is_dataclass(struct):
        fields = [field.name for field in dataclasses.fields(struct)]
    else:
        fields = []
    text = "\n".join(inspect.getdoc(base) or "" for base in struct.__mro__)
    missing = [field for field in fields if not re.search(rf"\b{field}\b", text)]
    assert missing == []


def test_every_command_and_option_has_a_help_text():
    """The reference explains every command, with an example, and every option."""
    _, *commands = re.split(r"^## tallystream ", command_line.page(), flags=re.MULTILINE)
    assert len(commands) == len([name for name in app if not name.startswith("-")])
    for command in commands:
        assert "Example: `tallystream " in command, command
        assert re.findall(r"^\* `[^`]*`$", command, re.MULTILINE) == []


def public_objects(package: Any) -> Iterator[tuple[str, object]]:
    """Yield each public object that a package defines, with its full name."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        module = importlib.import_module(found.name)
        yield found.name, module
        for name, thing in public(module):
            if getattr(thing, "__module__", None) != found.name:
                continue
            if inspect.isclass(thing):
                yield f"{found.name}.{name}", thing
                for member, value in vars(thing).items():
                    if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                        yield f"{found.name}.{name}.{member}", value
            elif inspect.isfunction(thing):
                yield f"{found.name}.{name}", thing


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public classes and functions of a module: those of `__all__`, or those without an underscore."""
    for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
        thing = getattr(module, name)
        if issubclass(type(thing), type | types.FunctionType):
            yield name, thing
