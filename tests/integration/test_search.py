"""Searching: by words, by meaning and by both, in pages, and with whatever users type."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from integration.helpers import OddEmbedder, zeros
from integration.searches import TYPES, fill, names
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    DocumentType,
    EmbeddingError,
    SearchResultWithDocuments,
    SearchType,
    Settings,
)

pytestmark = pytest.mark.anyio


@TYPES
async def test_a_hit_tells_all_about_itself(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url)
    content = "# Handbook\n\nIntroduction.\n\n## Leave\n\nStaff have 25 days of leave.\n"
    added = await memory.add_document(
        "acme",
        "Policy",
        content,
        document_type="markdown",
        id_at_origin="hr",
        external_id="policy",
        additional_metadata={"year": 2025},
        document_date=date(2025, 1, 31),
    )
    for given in (search_type, search_type.value, search_type.name, f" {search_type.value} "):
        hit = (await memory.search("acme", "days of leave", search_type=given))[0]
        assert UUID(hit.chunk_id)
        assert hit.document_id == added.document_id
        assert hit.document_name == "Policy"
        assert hit.document_type is DocumentType.MARKDOWN
        assert content[hit.start : hit.end] == hit.content
        assert "25 days" in hit.content
        assert hit.headings == ["Handbook", "Leave"]
        assert hit.position == 1
        assert hit.metadata == {"year": 2025}
        assert (hit.id_at_origin, hit.external_id) == ("hr", "policy")
        assert hit.document_date == datetime(2025, 1, 31, tzinfo=UTC)
        assert 0 < hit.score <= 1
        assert (hit.similarity is None) is (search_type is SearchType.TEXT)
        assert (hit.lexical_score is None) is (search_type is SearchType.VECTOR)
        assert hit.vector_rank in {None, 1}
        assert hit.text_rank in {None, 1}
        assert hit.model_dump_json()


@TYPES
async def test_nothing_stored_nothing_found(memory: AsyncMemory, search_type: SearchType) -> None:
    assert await memory.search("nobody", "leave", search_type=search_type) == []
    found = await memory.search_with_documents("nobody", "leave", search_type=search_type)
    assert (found.results, found.documents) == ([], [])


@TYPES
async def test_owners_do_not_see_each_other(memory: AsyncMemory, search_type: SearchType) -> None:
    owners = ["acme", "ACME", "acme ", "acm", "acme'", "acme%", "1"]
    for owner in owners:
        await memory.add_document(owner, f"of {owner}", "Days of leave.", id_at_origin="x")
    for owner in owners:
        assert await names(memory, owner, search_type=search_type) == [f"of {owner}"]
        assert await names(memory, owner, search_type=search_type, id_at_origin="x") == [
            f"of {owner}"
        ]
    assert await names(memory, 1, search_type=search_type) == ["of 1"]  # type: ignore[arg-type]


async def test_words_are_ored_and_the_better_match_is_first(memory: AsyncMemory) -> None:
    await memory.add_document("acme", "both", "Parental leave and sick leave.")
    await memory.add_document("acme", "one", "Sick notes are due on the third day.")
    await memory.add_document("acme", "none", "The canteen opens at noon.")
    found = await names(memory, query_text="parental leave sick zebra", search_type="text")
    assert found == ["both", "one"]


async def test_words_are_stemmed_by_language(memory: AsyncMemory) -> None:
    await memory.add_document("acme", "en", "The houses were sold.", language="english")
    await memory.add_document("acme", "de", "Die Häuser wurden verkauft.", language="german")
    await memory.add_document("acme", "fr", "Les maisons vendues.", language="french")
    await memory.add_document("acme", "simple", "houses Häuser", language="simple")
    assert await names(memory, query_text="house", search_type="text") == ["en"]
    assert await names(memory, query_text="verkaufte", search_type="text") == ["de"]
    assert await names(memory, query_text="vendu maison", search_type="text") == ["fr"]
    assert set(await names(memory, query_text="houses", search_type="text")) == {"en", "simple"}
    german = await names(memory, query_text="Haus", search_type="text", language="german")
    assert german == ["de"]
    assert set(await names(memory, query_text="Hauses house vendu", search_type="text")) == {
        "de",
        "en",
        "fr",
    }


@pytest.mark.parametrize("query", ["the of and", "the", "!!!", "...", "🙂", "—", "' \" \\"])
async def test_a_query_without_words(memory: AsyncMemory, query: str) -> None:
    await fill(memory, a={}, b={})
    assert await names(memory, query_text=query, search_type="text") == []
    assert len(await names(memory, query_text=query, search_type="vector")) == 2
    assert len(await names(memory, query_text=query)) == 2


HOSTILE = [
    "it's \"leave",
    "leave'; DROP TABLE llmemory.documents; --",
    "leave & | ! <-> :* ( ) leave:*",
    "!leave",
    "leave:A",
    "a:b:c leave",
    "\\ \\' \\\\ leave",
    "%s %(name)s {} {0} $1 ? :name :owner @x #y leave",
    "leave\n\r\t\x0b\x1f\u2028leave",
    "🙂 leave 🇩🇪 \U0010ffff",
    "لإجازة leave 休暇 отпуск",
    "leave\u0301\u200b\ufeff leave",
    "https://example.com/leave?a=b&c=d user@example.com leave",
    "C:\\leave\\file.txt /usr/leave -5.3e10 1.2.3 leave",
    "'" * 1000 + " leave",
    "leave " * 1600,
    "x" * 9990 + " leave",
    " ".join(f"word{number}" for number in range(1000)) + " leave",
    "leave " + "\\" * 9000,
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_queries_find_what_they_should(
    make_memory: MakeMemory, driver_url: str, query: str
) -> None:
    memory = make_memory(driver_url)
    await fill(memory, a={}, b={"language": "german", "content": "leave leave"}, c={})
    await memory.add_document("acme", "literal", query)
    await memory.add_document("acme", "other", "The canteen opens at noon.")
    for search_type in SearchType:
        hits = await memory.search("acme", query, search_type=search_type)
        assert all(0 <= hit.score <= 1 for hit in hits)
        assert {hit.document_name for hit in hits} >= {"a", "b", "c", "literal"} or (
            search_type is SearchType.TEXT and {hit.document_name for hit in hits} >= {"literal"}
        )
    assert (await memory.list_documents("acme")).total_count == 5


async def test_a_query_and_chunks_of_very_many_different_words(make_memory: MakeMemory) -> None:
    memory = make_memory(
        settings=Settings(chunk_size=100_000, chunk_overlap=0, max_query_length=1_000_000)
    )
    words = [f"{number:x}" for number in range(4096, 4096 + 16_500)]
    await memory.add_document("acme", "many", " ".join(words))
    await memory.add_document("acme", "rare", "qqqq")
    assert await names(memory, query_text=words[7], search_type="text") == ["many"]
    hits = await names(memory, query_text=" ".join(words) + " qqqq", search_type="text")
    assert set(hits) == {"many", "rare"}


@TYPES
async def test_an_offset_beyond_the_end(memory: AsyncMemory, search_type: SearchType) -> None:
    await fill(memory, a={}, b={})
    for offset in (2, 1000, 2**31 - 1, 2**31, 2**62):
        assert await names(memory, search_type=search_type, offset=offset) == []


@TYPES
async def test_ties_keep_one_order(memory: AsyncMemory, search_type: SearchType) -> None:
    await memory.add_documents(
        {"owner_id": "acme", "document_name": str(number), "content": "The very same leave."}
        for number in range(150)
    )
    whole = await names(memory, search_type=search_type, limit=150)
    assert len(set(whole)) == 150
    for _ in range(3):
        assert await names(memory, search_type=search_type, limit=150) == whole
        assert await names(memory, search_type=search_type, limit=20) == whole[:20]
        assert await names(memory, search_type=search_type, limit=20, offset=20) == whole[20:40]


async def test_alpha_at_its_ends_runs_one_arm(
    make_memory: MakeMemory, driver_url: str, statements: Callable[[AsyncMemory], Any]
) -> None:
    memory = make_memory(driver_url)
    await fill(memory, a={}, b={"content": "Nothing of the kind."})
    for alpha, same in ((0, "text"), (1, "vector")):
        calls = memory.embedder.calls  # type: ignore[attr-defined]
        with statements(memory) as sent:
            found = await memory.search("acme", "leave", alpha=alpha)
        assert found == await memory.search("acme", "leave", search_type=same)
        (text,) = sent
        assert ("vector_arm" in text) is (alpha == 1)
        assert ("text_arm" in text) is (alpha == 0)
        if alpha == 0:
            assert memory.embedder.calls == calls  # type: ignore[attr-defined]
    hybrid = await memory.search("acme", "leave", alpha=0.999999)
    assert [hit.document_name for hit in hybrid] == ["a", "b"]


async def test_alpha_comes_from_the_call_the_settings_or_the_embedder(
    make_memory: MakeMemory,
) -> None:
    memory = make_memory(settings=Settings(alpha=0))
    await fill(memory, a={}, b={"content": "Nothing of the kind."})
    assert len(await names(memory)) == 1
    assert len(await names(memory, alpha=0.5)) == 2
    embedder = OddEmbedder()
    embedder.alpha = np.float32(0)  # type: ignore[attr-defined]
    other = make_memory(embedder=embedder, schema="other")
    await fill(other, a={}, b={"content": "Nothing of the kind."})
    assert len(await names(other)) == 1


async def test_alpha_may_depend_on_the_query(make_memory: MakeMemory) -> None:
    class Doubting(OddEmbedder):
        given: object = 0.25

        def alpha_for(self, query: str) -> Any:
            self.asked = query
            return self.given

    embedder = Doubting()
    memory = make_memory(embedder=embedder)
    await fill(memory, a={}, b={"content": "Nothing of the kind."})
    best, other = await memory.search("acme", "leave -holiday")
    same, _ = await memory.search("acme", "leave -holiday", alpha=0.25)
    assert (best.score, other.lexical_score) == (same.score, None)
    assert embedder.asked == "leave"
    embedder.given = 0
    assert len(await memory.search("acme", "leave")) == 1
    embedder.given = 1.0
    hits = await memory.search("acme", "leave")
    assert [hit.text_rank for hit in hits] == [None, None]
    for bad in (2, float("nan"), None, "much"):
        embedder.given = bad
        with pytest.raises(EmbeddingError, match="alpha_for of the embedder"):
            await memory.search("acme", "leave")
    assert len(await memory.search("acme", "leave", search_type="vector")) == 2
    assert len(await memory.search("acme", "leave", alpha=0.5)) == 2


@TYPES
async def test_vectors_without_a_direction(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    embedder = OddEmbedder()
    memory = make_memory(driver_url, embedder=embedder)
    await fill(memory, a={})
    embedder.answer = zeros
    await fill(memory, b={}, c={})
    for answer in (None, zeros):
        embedder.answer = answer
        hits = await memory.search("acme", "leave", search_type=search_type)
        assert {hit.document_name for hit in hits} == {"a", "b", "c"}
        for hit in hits:
            assert 0 <= hit.score <= 1
            assert hit.similarity is None or -1 <= hit.similarity <= 1
            assert "NaN" not in hit.model_dump_json()


async def test_similarity_stays_in_its_range(memory: AsyncMemory) -> None:
    chosen = random.Random(3)
    texts = [" ".join(f"w{chosen.randrange(999)}" for _ in range(n + 1)) for n in range(60)]
    await memory.add_documents(
        {"owner_id": "acme", "document_name": text[:50], "content": text} for text in texts
    )
    for text in texts:
        (best, *_) = await memory.search("acme", text, search_type="vector")
        assert best.content == text
        assert best.similarity is not None
        assert 0.99 < best.similarity <= 1
        assert 0.99 < best.score <= 1


async def test_later_documents_are_found_by_words_at_once(memory: AsyncMemory) -> None:
    await memory.add_document("acme", "later", "Days of leave.", embed="later")
    await memory.add_document("acme", "now", "Days of leave.")
    assert set(await names(memory, search_type="text")) == {"later", "now"}
    assert await names(memory, search_type="vector") == ["now"]
    assert set(await names(memory)) == {"later", "now"}


async def test_hits_grouped_by_document(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    long = "\n\n".join(f"Leave number {number}. " + "filler " * 200 for number in range(4))
    await memory.add_document("acme", "long", long, additional_metadata={"a": 1})
    await memory.add_document("acme", "short", "Leave.", document_type="email")
    found = await memory.search_with_documents("acme", "leave", limit=3, search_type="text")
    assert isinstance(found, SearchResultWithDocuments)
    assert found.results == await memory.search("acme", "leave", limit=3, search_type="text")
    assert [document.document_name for document in found.documents] == ["short", "long"]
    assert [len(document.results) for document in found.documents] == [1, 2]
    assert found.documents[0].document_type is DocumentType.EMAIL
    assert found.documents[1].metadata == {"a": 1}
    for document in found.documents:
        assert document.score == max(hit.score for hit in document.results)
        assert all(hit.document_id == document.document_id for hit in document.results)
    # As the guide filters them.
    found.results = [hit for hit in found.results if hit.document_type is DocumentType.EMAIL]
    assert len(found.results) == 1
    assert SearchResultWithDocuments.model_validate_json(found.model_dump_json()) == found
