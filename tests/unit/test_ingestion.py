"""Which chunks a write keeps, and what it has to embed."""

from __future__ import annotations

import hashlib
from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest

from llmemory import DocumentType, Settings
from llmemory.documents.ingestion import (
    DocumentPlan,
    PlannedChunks,
    StoredChunks,
    StoredDocument,
    is_unchanged,
    plan_document,
    plan_texts,
    rows_by_hash,
)
from llmemory.embedding.text import ChunkToEmbed, TextsToEmbed
from llmemory.validation.documents import CheckedDocument, checked_document

SETTINGS = Settings(chunk_size=50, chunk_overlap=0)
WITH_HEADINGS = Settings(chunk_size=50, chunk_overlap=0, embed_headings=True)


def document(content: str = "Text.", **more: Any) -> CheckedDocument:
    return checked_document(
        {"owner_id": "acme", "document_name": "n", "content": content, **more}, SETTINGS
    )


def stored(plan: DocumentPlan, *, vectors: bool = True) -> tuple[StoredDocument, StoredChunks]:
    """Return what the database holds after `plan`; fields of later versions get their default."""
    checked = plan.document
    values: dict[str, Any] = {
        "document_id": plan.document_id,
        "external_id": checked.external_id,
        "id_at_origin": checked.id_at_origin,
        "document_name": checked.document_name,
        "document_type": checked.document_type.value,
        "document_date": checked.document_date,
        "language": checked.language,
        "metadata": checked.metadata,
        "content_hash": checked.content_hash,
        "chunk_count": plan.chunk_count,
    }
    names = StoredDocument.__dataclass_fields__
    values |= {"is_pending": False} if "is_pending" in names else {}
    values |= {name: None for name in names if name not in values}
    written = chunks_of(plan)
    have_vectors = bytes([vectors]) * len(written)
    return StoredDocument(**values), StoredChunks(
        bytes(written.ids), bytes(written.hashes), have_vectors
    )


def chunks_of(plan: DocumentPlan) -> PlannedChunks:
    assert plan.chunks is not None
    return plan.chunks


def ids_of(plan: DocumentPlan) -> list[bytes]:
    chunks = chunks_of(plan)
    return [chunks.id_of(position) for position in range(len(chunks))]


def embedded(plan: DocumentPlan) -> list[str]:
    """Return the texts that a plan has to embed, one per chunk."""
    return [plan.content_of(position) for position, _ in plan.to_embed()]


def lines(*words: str) -> str:
    return "\n\n".join(word * (40 // len(word)) for word in words)


def plan(content: str, before: DocumentPlan | None = None, **more: Any) -> DocumentPlan:
    if before is None:
        return plan_document(document(content, **more), SETTINGS)
    was, chunks = stored(before)
    given = document(content, **more)
    # As the writer does: the chunks of what has not changed are not read.
    return plan_document(
        given, SETTINGS, was, None if is_unchanged(given, was, SETTINGS) else chunks
    )


def test_a_new_document_embeds_all() -> None:
    made = plan(lines("alpha", "beta"))
    assert (made.status, made.chunk_count) == ("created", 2)
    assert embedded(made) == lines("alpha", "beta").split("\n\n")
    assert made.to_embed_count == 2
    assert not made.writes_nothing
    assert len(set(ids_of(made))) == 2


def test_the_same_again_writes_nothing() -> None:
    before = plan(lines("alpha", "beta"))
    again = plan(lines("alpha", "beta"), before)
    assert (again.status, again.chunks, embedded(again)) == ("unchanged", None, [])
    assert again.writes_nothing
    assert (again.document_id, again.chunk_count) == (before.document_id, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"document_name": "other"},
        {"additional_metadata": {"a": 1}},
        {"document_date": "2025-01-31"},
        {"id_at_origin": "x"},
        {"external_id": "x"},
        {"document_type": "report"},
    ],
)
def test_other_details_are_written_without_splitting(change: dict[str, Any]) -> None:
    again = plan(lines("alpha"), plan(lines("alpha")), **change)
    assert (again.status, again.chunks) == ("unchanged", None)
    assert not again.writes_nothing


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"document_type": "email"}, True),
        ({"document_type": "markdown"}, False),
        ({"document_type": "code"}, False),
        ({"language": "german"}, False),
    ],
)
def test_what_makes_splitting_necessary(change: dict[str, Any], expected: bool) -> None:
    was, _ = stored(plan("Text."))
    assert is_unchanged(document("Text.", **change), was, SETTINGS) is expected
    assert not is_unchanged(document("Other.", **change), was, SETTINGS)


def test_kept_chunks_keep_their_ids_and_vectors() -> None:
    before = plan(lines("alpha", "beta", "gamma"))
    after = plan(lines("gamma", "new", "alpha"), before)
    first, second, third = ids_of(before)
    assert ids_of(after)[::2] == [third, first]
    assert [text[:3] for text in embedded(after)] == ["new"]
    assert chunks_of(after).removed == second
    assert after.status == "replaced"
    assert after.document_id == before.document_id


def test_a_kept_chunk_without_a_vector_is_embedded() -> None:
    before = plan(lines("alpha", "beta"))
    was, chunks = stored(before, vectors=False)
    after = plan_document(document(lines("alpha", "new")), SETTINGS, was, chunks)
    assert after.to_embed_count == 2
    assert ids_of(after)[0] == ids_of(before)[0]
    assert list(chunks_of(after).are_stored) == [True, False]


def test_equal_chunks_are_kept_one_for_one() -> None:
    before = plan(lines("same", "same", "same"))
    fewer = plan(lines("same", "same"), before)
    more = plan(lines("same", "same", "same", "same"), before)
    assert ids_of(fewer) == ids_of(before)[:2]
    assert chunks_of(fewer).removed == ids_of(before)[2]
    assert ids_of(more)[:3] == ids_of(before)
    assert len(set(ids_of(more))) == 4
    assert (fewer.to_embed_count, more.to_embed_count) == (0, 1)


def test_another_language_keeps_all_chunks() -> None:
    after = plan(lines("alpha", "beta"), plan(lines("alpha", "beta")), language="german")
    assert after.status == "replaced"
    assert embedded(after) == []
    assert all(chunks_of(after).are_stored)
    assert not chunks_of(after).removed


def test_chunks_of_nobody_are_not_taken() -> None:
    foreign = StoredChunks(uuid4().bytes, hashlib.sha256(b"other").digest(), b"\1")
    was, _ = stored(plan("Text."))
    after = plan_document(document("New."), SETTINGS, was, foreign)
    assert after.to_embed_count == 1
    assert chunks_of(after).removed == foreign.ids


def test_a_text_that_occurs_twice_is_embedded_once() -> None:
    plans = [plan(lines("same", "other", "same")), plan(lines("new", "other"))]
    texts = plan_texts(plans)
    assert [chunk.content[:3] for chunk in texts.new] == ["sam", "oth", "new"]
    assert texts.new[1:] == [texts.new[1], texts.new[2]]
    assert list(texts.rows) == [0, 1, 0, 2, 1]


def test_what_an_attempt_before_has_embedded_is_not_embedded_again() -> None:
    before = [plan(lines("alpha", "beta", "alpha"))]
    known = rows_by_hash(before, plan_texts(before).rows)
    assert list(known.values()) == [0, 1]
    plans = [plan(lines("beta", "gamma", "alpha"))]
    texts = plan_texts(plans, known, 2)
    assert [chunk.content[:5] for chunk in texts.new] == ["gamma"]
    assert list(texts.rows) == [1, 2, 0]


def test_documents_may_have_vectors_of_their_own_for_equal_texts() -> None:
    plans = [plan(lines("same", "other", "same")), plan(lines("new", "other"))]
    texts = plan_texts(plans, by_document=True)
    assert [chunk.content[:3] for chunk in texts.new] == ["sam", "oth", "new", "oth"]
    assert list(texts.rows) == [0, 1, 0, 2, 3]
    known = rows_by_hash(plans, texts.rows, by_document=True)
    again = plan_texts(plans, known, 4, by_document=True)
    assert (len(again.new), again.rows) == (0, texts.rows)


class TestHeadings:
    """With ``embed_headings``, what stands above a chunk is part of what is compared."""

    TEXT = "# Leave\n\nStaff have 25 days.\n\n# Pay\n\nOn the last day."

    def given(self, content: str = TEXT, **more: Any) -> CheckedDocument:
        return document(content, document_type=DocumentType.MARKDOWN, **more)

    def test_a_chunk_knows_what_it_stands_in(self) -> None:
        made = plan_document(self.given(document_name="Handbook"), WITH_HEADINGS)
        (chunk, _) = plan_texts([made]).new
        assert chunk == ChunkToEmbed(
            "acme", "Handbook", ("Leave",), "# Leave\n\nStaff have 25 days.", self.TEXT
        )
        text = "Handbook > Leave\n\n# Leave\n\nStaff have 25 days."
        assert list(TextsToEmbed([chunk], with_headings=True)) == [text]
        assert list(TextsToEmbed([chunk], with_headings=False)) == [chunk.content]
        assert chunks_of(made).hash_of(0) == sha256(text.encode()).digest()
        assert made.content_of(0) == chunk.content

    def test_another_name_makes_other_chunks(self) -> None:
        before = self.given(document_name="Handbook")
        was, chunks = stored(plan_document(before, WITH_HEADINGS))
        renamed = self.given(document_name="Staff handbook")
        assert is_unchanged(renamed, was, SETTINGS)
        assert not is_unchanged(renamed, was, WITH_HEADINGS)
        after = plan_document(renamed, WITH_HEADINGS, was, chunks)
        assert (after.status, after.to_embed_count) == ("replaced", 2)
        assert chunks_of(after).removed == chunks.ids

    def test_a_chunk_below_another_heading_is_another(self) -> None:
        text = "# A\n\n## B\n\nOne.\n\n## C\n\nTwo."
        before = self.given(text)
        was, chunks = stored(plan_document(before, WITH_HEADINGS))
        after = plan_document(self.given(text.replace("# A", "# Z")), WITH_HEADINGS, was, chunks)
        assert after.to_embed_count == 2
        before = self.given(text)
        was, chunks = stored(plan_document(before, SETTINGS))
        after = plan_document(self.given(text.replace("# A", "# Z")), SETTINGS, was, chunks)
        assert after.to_embed_count == 1


def test_markdown_is_split_at_headings() -> None:
    made = plan("# A\n\nfirst\n\n# B\n\nsecond", document_type=DocumentType.MARKDOWN)
    assert [chunks_of(made).headings_of(position) for position in range(2)] == [["A"], ["B"]]
