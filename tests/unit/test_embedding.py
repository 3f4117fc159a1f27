"""Embedders, and what is checked of what they return."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest

from llmemory import (
    ConfigurationError,
    DimensionMismatch,
    Embedder,
    EmbeddingError,
    HashEmbedder,
    ProviderRejected,
    ProviderUnavailable,
    StaticEmbedder,
    StorageError,
)
from llmemory.embedding import static
from llmemory.embedding.base import checked_embedder, embed_checked, provider_of
from llmemory.embedding.partial import (
    MOST_REFUSALS,
    embed_all_but_refused,
    embed_what_is_possible,
    reason_of,
)

pytestmark = pytest.mark.anyio

EMBEDDERS = [
    pytest.param(HashEmbedder, id="hash"),
    pytest.param(
        StaticEmbedder,
        id="static",
        marks=pytest.mark.skipif(not static.is_installed(), reason="needs the extra embedded"),
    ),
]


class Answering:
    """Returns what it is told to."""

    model = "odd"
    dimensions = 3

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.sizes: list[int] = []

    async def embed(self, texts: Any, *, purpose: Any) -> Any:
        self.sizes.append(len(texts))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(len(texts)) if callable(self.answer) else self.answer


async def checked(answer: Any, texts: int = 2, batch_size: int = 10) -> Any:
    return await embed_checked(
        Answering(answer), ["text"] * texts, purpose="document", batch_size=batch_size
    )


@pytest.mark.parametrize("make", EMBEDDERS)
async def test_shape_type_length_and_determinism(make: Any) -> None:
    embedder = make()
    assert isinstance(embedder, Embedder)
    texts = [
        "Days of leave.",
        "🙂",
        "the",
        "日本語",
        "x" * 50_000,
        "\u200b",
        "a\nb",
        "Days of leave.",
    ]
    vectors = await embedder.embed(texts, purpose="document")
    assert vectors.shape == (len(texts), embedder.dimensions)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    norms = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(norms - 1) < 1e-5) | (norms == 0))
    assert np.array_equal(vectors[0], vectors[-1])
    again = await make().embed(texts, purpose="query")
    assert np.allclose(vectors, again, atol=1e-6)
    alone = await embedder.embed(texts[:1], purpose="document")
    assert np.allclose(alone[0], vectors[0], atol=1e-6)


@pytest.mark.parametrize("make", EMBEDDERS)
async def test_texts_with_words_in_common_are_nearer(make: Any) -> None:
    near, far, query = await make().embed(
        ["Staff have 25 days of leave.", "The pump needs oil.", "days of leave"], purpose="document"
    )
    assert near @ query > far @ query


async def test_hash_vectors_are_the_same_everywhere() -> None:
    (vector,) = await HashEmbedder(8).embed(["alpha beta beta"], purpose="document")
    assert vector.tolist() == pytest.approx(
        (await HashEmbedder(8).embed(["beta ALPHA, beta!"], purpose="query"))[0].tolist()
    )


@pytest.mark.parametrize("dimensions", [1, 0, -1, 16_001])
def test_hash_dimensions_are_bounded(dimensions: int) -> None:
    with pytest.raises(ConfigurationError, match="dimensions"):
        HashEmbedder(dimensions)


async def test_hash_counts_its_calls() -> None:
    embedder = HashEmbedder()
    await embedder.embed(["a", "b"], purpose="document")
    await embedder.embed(["c"], purpose="query")
    assert (embedder.calls, embedder.texts) == (2, 3)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (np.zeros((1, 3)), EmbeddingError),
        (np.zeros((3, 3)), EmbeddingError),
        (np.zeros((2, 4)), DimensionMismatch),
        (np.zeros((2, 2)), DimensionMismatch),
        (np.zeros(6), EmbeddingError),
        (np.zeros((2, 3, 1)), EmbeddingError),
        ([[1.0, 2.0, float("nan")]] * 2, EmbeddingError),
        ([[1.0, 2.0, float("inf")]] * 2, EmbeddingError),
        (np.full((2, 3), 1e300), EmbeddingError),
        (None, EmbeddingError),
        ("vector", EmbeddingError),
        ([["a", "b", "c"]] * 2, EmbeddingError),
        ([[1.0], [1.0, 2.0]], EmbeddingError),
        (RuntimeError("gone"), EmbeddingError),
        (TimeoutError(), EmbeddingError),
        (ExceptionGroup("many", [ValueError()]), EmbeddingError),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
async def test_what_an_embedder_may_not_return(answer: Any, error: type[EmbeddingError]) -> None:
    with pytest.raises(EmbeddingError, match="'odd'") as caught:
        await checked(answer)
    assert type(caught.value) is error
    if isinstance(answer, Exception):
        assert caught.value.__cause__ is answer
    if isinstance(caught.value, DimensionMismatch):
        assert (caught.value.expected, caught.value.got) == (3, answer.shape[1])


@pytest.mark.parametrize("error", [ProviderUnavailable("busy"), KeyboardInterrupt()])
async def test_what_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        await checked(error)
    assert caught.value is error


async def test_an_embedder_that_is_not_asynchronous() -> None:
    class Plain(Answering):
        def embed(self, texts: Any, *, purpose: Any) -> Any:  # type: ignore[override]
            return np.ones((len(texts), 3))

    with pytest.raises(EmbeddingError):
        await embed_checked(Plain(None), ["a"], purpose="query", batch_size=1)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-42, 3e38])
async def test_vectors_are_scaled_to_length_one(scale: float) -> None:
    vectors = await checked(lambda count: np.full((count, 3), scale, dtype=np.float32))
    assert vectors.dtype == np.float16
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-3)


async def test_a_vector_of_zeros_stays() -> None:
    vectors = await checked(lambda count: np.zeros((count, 3)))
    assert not vectors.any()


async def test_lists_and_other_kinds_of_numbers_are_taken() -> None:
    for answer in ([[1, 0, 0]] * 2, np.ones((2, 3), dtype=np.int8), np.ones((2, 3), dtype=">f8")):
        assert (await checked(answer)).shape == (2, 3)


async def test_batches() -> None:
    embedder = Answering(lambda count: np.ones((count, 3)))
    vectors = await embed_checked(embedder, ["a"] * 25, purpose="document", batch_size=10)
    assert embedder.sizes == [10, 10, 5]
    assert vectors.shape == (25, 3)
    empty = await embed_checked(embedder, [], purpose="document", batch_size=10)
    assert empty.shape == (0, 3)
    assert embedder.sizes == [10, 10, 5]


class Counting(HashEmbedder):
    """Counts the calls that are under way, each of which waits for the others."""

    max_concurrency = 3

    def __init__(self) -> None:
        super().__init__(dimensions=4)
        self.at_once: list[int] = []
        self.under_way = 0

    async def embed(self, texts: Any, *, purpose: Any) -> Any:
        self.under_way += 1
        await anyio.wait_all_tasks_blocked()
        self.at_once.append(self.under_way)
        self.under_way -= 1
        return await super().embed(texts, purpose=purpose)


async def test_batches_at_once() -> None:
    expected = await embed_checked(HashEmbedder(4), TEXTS, purpose="document", batch_size=100)
    embedder = Counting()
    turns = anyio.CapacityLimiter(3)
    vectors = await embed_checked(embedder, TEXTS, purpose="document", batch_size=10, turns=turns)
    assert np.array_equal(vectors, expected)
    assert max(embedder.at_once) == 3
    embedder = Counting()
    found = await embed_what_is_possible(embedder, TEXTS, batch_size=10)
    assert np.array_equal(np.concatenate(found.vectors), expected[found.numbers])
    assert sorted(found.numbers) == list(range(100))
    assert max(embedder.at_once) == 3


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", 10_000])
def test_an_unusable_number_of_calls(number: Any) -> None:
    embedder = HashEmbedder()
    assert checked_embedder(embedder) is embedder
    embedder.max_concurrency = number  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="max_concurrency must be 1 to 1000"):
        checked_embedder(embedder)


def test_the_providers_name() -> None:
    assert provider_of(HashEmbedder()) == "hash"
    assert provider_of(Answering(None)) == "Answering"


class Refusing(HashEmbedder):
    """Raises an error for any call with one of certain texts."""

    def __init__(self, error: Exception, *texts: str) -> None:
        super().__init__(dimensions=4)
        self.error = error
        self.refused = set(texts)
        self.sizes: list[int] = []

    async def embed(self, texts: Any, *, purpose: Any) -> Any:
        self.sizes.append(len(texts))
        if self.refused.intersection(texts):
            raise self.error
        return await super().embed(texts, purpose=purpose)


TEXTS = [str(number) for number in range(100)]


@pytest.mark.parametrize(
    "error",
    [
        ProviderRejected("no", status=400),
        ProviderRejected("no"),
        EmbeddingError("no"),
        ValueError(),
    ],
    ids=repr,
)
async def test_a_refused_batch_is_halved_down_to_the_guilty(error: Exception) -> None:
    embedder = Refusing(error, "7", "50", "51")
    found = await embed_what_is_possible(embedder, TEXTS, batch_size=32)
    assert set(found.errors) == {7, 50, 51}
    assert found.numbers == sorted(set(range(100)) - {7, 50, 51})
    assert found.error is None
    expected = await embed_checked(
        HashEmbedder(4),
        [TEXTS[number] for number in found.numbers],
        purpose="document",
        batch_size=9,
    )
    assert np.array_equal(np.concatenate(found.vectors), expected)
    assert len(embedder.sizes) <= 4 + 3 * 2 * 5


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailable("no"),
        ProviderRejected("no", status=401),
        ProviderRejected("no", status=429),
        DimensionMismatch("no", expected=4, got=5),
    ],
    ids=repr,
)
async def test_what_is_not_about_texts_ends_it(error: EmbeddingError) -> None:
    embedder = Refusing(error, "40")
    found = await embed_what_is_possible(embedder, TEXTS, batch_size=32)
    assert found.error is error
    assert found.numbers == list(range(32))
    assert set(found.errors) == set(range(32, 64))
    assert embedder.sizes == [32, 32]


async def test_an_embedder_that_takes_a_plain_text_is_asked_for_all_others() -> None:
    embedder = Refusing(ProviderRejected("no"), *TEXTS[:99])
    found = await embed_all_but_refused(embedder, TEXTS)
    assert (len(found.errors), found.numbers) == (99, [99])
    found = await embed_all_but_refused(embedder, TEXTS[:50])
    assert (len(found.errors), found.numbers) == (50, [])


@pytest.mark.parametrize(
    "error", [ProviderRejected("no", status=400), ProviderUnavailable("no"), ZeroDivisionError()]
)
async def test_one_that_refuses_even_that_has_failed(error: Exception) -> None:
    embedder = Refusing(error, "text", *TEXTS)
    with pytest.raises(EmbeddingError) as caught:
        await embed_all_but_refused(embedder, TEXTS)
    assert error in (caught.value, caught.value.__cause__)
    assert len(embedder.sizes) <= 2 * MOST_REFUSALS + 10


async def test_an_embedder_that_takes_nothing_is_left_alone() -> None:
    embedder = Refusing(ProviderRejected("no"), *TEXTS)
    found = await embed_what_is_possible(embedder, TEXTS, batch_size=32)
    assert (len(found.errors), found.numbers) == (MOST_REFUSALS, [])
    assert len(embedder.sizes) <= 2 * MOST_REFUSALS + 5


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (ProviderUnavailable("secret"), "ProviderUnavailable"),
        (ProviderRejected("secret", status=400), "ProviderRejected, status 400"),
        (ProviderRejected("secret", status="secret"), "ProviderRejected"),  # type: ignore[arg-type]
        (DimensionMismatch("secret", expected=3, got=4), "3 dimensions announced, 4 received"),
        (EmbeddingError("secret"), "EmbeddingError"),
        (StorageError("secret", sqlstate="22000"), "SQLSTATE 22000"),
    ],
)
def test_a_reason_has_facts_and_no_words_of_others(error: Any, facts: str) -> None:
    error.__cause__ = ValueError("secret")
    reason = reason_of(error)
    assert facts in reason
    assert "caused by ValueError" in reason
    assert "secret" not in reason
