"""What ``llmemory`` offers by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest

import llmemory
from llmemory import errors


def test_every_name_in_all_exists_and_the_list_is_sorted() -> None:
    assert llmemory.__all__ == sorted(set(llmemory.__all__))
    for name in llmemory.__all__:
        assert getattr(llmemory, name) is not None


def test_every_error_is_exported() -> None:
    tree = {error.__name__ for error in error_classes()}
    assert tree == set(errors.__all__)
    assert tree <= set(llmemory.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("what went wrong")
    for attribute in vars(error):
        setattr(error, attribute, f"value of {attribute}")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == "what went wrong"
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_is_documented_in_the_tree(name: str) -> None:
    assert name in (errors.__doc__ or "")
    assert getattr(errors, name).__doc__


def test_importing_needs_no_extra_and_no_migration_tool() -> None:
    script = "import sys, llmemory; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    extras = {"cyclopts", "rich", "tokenizers", "safetensors", "platformdirs", "wordllama"}
    frameworks = {"django", "fastapi", "flask", "starlette"}
    assert not (extras | frameworks | {"alembic"}) & set(output.split())


IMPORT_WITHOUT = """
import importlib, sys

class Missing:
    def find_spec(self, name, *others):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
importlib.import_module(f"llmemory.{sys.argv[1]}")
"""


@pytest.mark.parametrize("extra", ["django", "fastapi", "flask"])
def test_a_missing_extra_is_named(extra: str) -> None:
    failed = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, extra], capture_output=True, text=True
    )
    message = f'llmemory.{extra} needs an extra that is not installed: `pip install ".[{extra}]"`.'
    assert failed.stderr.splitlines()[-1] == f"ImportError: {message}"


def error_classes(base: type[Exception] = errors.LLMemoryError) -> Iterator[type[Exception]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_classes(child)
