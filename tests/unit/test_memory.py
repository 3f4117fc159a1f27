"""``Memory`` is ``AsyncMemory`` without an event loop, name by name."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest

from llmemory import AsyncMemory, Memory

ASYNCHRONOUS = {name for name in dir(AsyncMemory) if not name.startswith("_")}
BLOCKING = {name for name in dir(Memory) if not name.startswith("_")}
PROPERTIES = {name for name in ASYNCHRONOUS if isinstance(getattr(AsyncMemory, name), property)}


def test_the_public_names_are_the_same() -> None:
    assert BLOCKING == ASYNCHRONOUS


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_properties_are_the_same(name: str) -> None:
    ours, theirs = getattr(Memory, name), getattr(AsyncMemory, name)
    assert get_type_hints(ours.fget) == get_type_hints(theirs.fget)
    assert inspect.getdoc(ours) == inspect.getdoc(theirs)
    assert inspect.getdoc(ours)


@pytest.mark.parametrize("name", sorted(ASYNCHRONOUS - PROPERTIES))
def test_signature_and_docstring_are_the_same(name: str) -> None:
    ours, theirs = getattr(Memory, name), getattr(AsyncMemory, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.getdoc(ours) == inspect.getdoc(theirs)
    assert inspect.getdoc(ours)
    assert ours.__name__ == name
    assert ours.__qualname__ == f"Memory.{name}"
    assert not inspect.iscoroutinefunction(ours)
    assert not hasattr(ours, "__wrapped__")


def test_the_constructors_take_the_same() -> None:
    assert inspect.signature(Memory) == inspect.signature(AsyncMemory)


@pytest.mark.parametrize("name", sorted(ASYNCHRONOUS - PROPERTIES - {"from_engine"}))
def test_annotations_are_understood(name: str) -> None:
    assert get_type_hints(getattr(Memory, name)) == get_type_hints(getattr(AsyncMemory, name))
