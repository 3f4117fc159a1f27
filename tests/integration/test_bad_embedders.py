"""Embedders that are none, are not the stored one, fail, or answer nonsense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integration.helpers import OddEmbedder
from integration.refusals import SECRET, good_document, refuses
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    DimensionMismatch,
    EmbedderMismatchError,
    EmbeddingError,
    HashEmbedder,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("value", ["openai", 5, object(), HashEmbedder])
async def test_an_embedder_is_one(database_url: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="embedder"):
        await AsyncMemory(database_url, embedder=value).initialize()


@pytest.mark.parametrize(
    ("name", "value"),
    [("dimensions", 0), ("dimensions", -1), ("dimensions", "256"), ("dimensions", 16_001),
     ("model", ""), ("model", None), ("model", "a\0b")],
)  # fmt: skip
async def test_an_embedder_announces_sensible_things(
    make_memory: MakeMemory, name: str, value: Any
) -> None:
    embedder = HashEmbedder()
    setattr(embedder, name, value)
    with pytest.raises(ConfigurationError, match=name):
        await make_memory(embedder=embedder).initialize()


async def test_another_embedder_names_both(make_memory: MakeMemory, database_url: str) -> None:
    await make_memory().add_document("acme", "a", "b")
    for embedder in (HashEmbedder(8), OddEmbedder()):
        with pytest.raises(EmbedderMismatchError) as caught:
            await make_memory(embedder=embedder).search("acme", "a")
        assert isinstance(caught.value, ConfigurationError)
        assert caught.value.stored == "hash/hash (256 dimensions)"
        assert caught.value.given == "hash/hash (8 dimensions)"
        assert caught.value.stored in str(caught.value)
        assert caught.value.given in str(caught.value)


BAD_ANSWERS: dict[str, tuple[Any, type[EmbeddingError]]] = {
    "raises": (RuntimeError("the model is gone"), EmbeddingError),
    "os-error": (OSError("no network"), EmbeddingError),
    "timeout": (TimeoutError(), EmbeddingError),
    "nothing": (lambda count: np.zeros((0, 8)), EmbeddingError),
    "one-too-many": (lambda count: np.ones((count + 1, 8)), EmbeddingError),
    "too-short": (lambda count: np.ones((count, 7)), DimensionMismatch),
    "flat": (lambda count: np.ones(8 * count), EmbeddingError),
    "cubic": (lambda count: np.ones((count, 8, 1)), EmbeddingError),
    "nan": (lambda count: np.full((count, 8), np.nan), EmbeddingError),
    "infinite": (lambda count: np.full((count, 8), np.inf), EmbeddingError),
    "text": (lambda count: ["vector"] * count, EmbeddingError),
    "ragged": (lambda count: [[1.0, [2.0]]] * count, EmbeddingError),
    "numbers": (5, EmbeddingError),
    "objects": (lambda count: [object()] * count, EmbeddingError),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_embedder_that_misbehaves(
    make_memory: MakeMemory, database_url: str, name: str
) -> None:
    answer, error = BAD_ANSWERS[name]
    embedder = OddEmbedder()
    memory = make_memory(embedder=embedder)
    document = await memory.add_document("acme", "a", "First text.", external_id="a")
    embedder.answer = answer
    for call in (
        lambda: memory.add_document("acme", "b", f"{SECRET} text."),
        lambda: memory.add_document("acme", "a", f"{SECRET} text.", external_id="a"),
        lambda: memory.add_documents([good_document(content=SECRET)] * 3),
        lambda: memory.update_document("acme", document.document_id, content=SECRET),
        lambda: memory.search("acme", SECRET),
        lambda: memory.search("acme", SECRET, search_type="vector"),
    ):
        found = await refuses(call, database_url, "embedder", error)
        if isinstance(answer, BaseException):
            assert found.__cause__ is answer
    assert len(await memory.search("acme", "first", search_type="text")) == 1


async def test_an_embedders_own_error_passes_through(make_memory: MakeMemory) -> None:
    own = EmbeddingError("quota")
    memory = make_memory(embedder=OddEmbedder(own))
    with pytest.raises(EmbeddingError) as caught:
        await memory.add_document("acme", "a", "b")
    assert caught.value is own
