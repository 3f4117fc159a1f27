"""LocalEmbedder without its extra; with it: tests/local."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmemory import AsyncMemory, ConfigurationError, LocalEmbedder, Settings
from llmemory.embedding import local


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "\.\[local\]"'):
        LocalEmbedder()
    with pytest.raises(ConfigurationError, match=r'pip install "\.\[local\]"'):
        AsyncMemory("postgresql://host/app", settings=Settings(embedder="local"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"model": Path("no/folder")}, "no folder"),
        ({"model": " "}, "name or a path"),
        ({"model": None}, "name or a path"),
        ({"model": b"model"}, "name or a path"),
        ({"dimensions": 0}, "dimensions must be 1 to 16000"),
        ({"dimensions": 16_001}, "dimensions"),
        ({"batch_size": 0}, "batch_size must be 1 to 10000"),
    ],
)
def test_what_is_wrong_is_named(
    options: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "find_spec", lambda name: find_spec("numpy"))
    with pytest.raises(ConfigurationError, match=word):
        LocalEmbedder(**{"dimensions": 384, **options})


def test_the_settings_name_all_but_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_spec", lambda name: find_spec("numpy"))
    monkeypatch.setenv("LLMEMORY_EMBEDDER", "local")
    monkeypatch.setenv("LLMEMORY_LOCAL_MODEL", "intfloat/e5-small-v2")
    monkeypatch.setenv("LLMEMORY_LOCAL_DIMENSIONS", "384")
    monkeypatch.setenv("LLMEMORY_LOCAL_QUERY_PROMPT", "query: ")
    # With its dimensions given, the model is not loaded yet.
    embedder = AsyncMemory("postgresql://host/app").embedder
    assert repr(embedder) == "LocalEmbedder('intfloat/e5-small-v2', dimensions=384)"
    assert isinstance(embedder, LocalEmbedder)
    assert embedder._prompts == {"document": None, "query": "query: "}
