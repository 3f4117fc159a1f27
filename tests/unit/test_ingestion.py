"""Which chunks a write keeps, and what it has to embed."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import uuid4

import pytest

from llmemory import DocumentType, Settings
from llmemory.ingestion import (
    DocumentPlan,
    StoredChunk,
    StoredDocument,
    is_unchanged,
    plan_document,
)
from llmemory.validation import CheckedDocument, checked_document

SETTINGS = Settings(chunk_size=50, chunk_overlap=0)


def document(content: str = "Text.", **more: Any) -> CheckedDocument:
    return checked_document(
        {"owner_id": "acme", "document_name": "n", "content": content, **more}, SETTINGS
    )


def stored(plan: DocumentPlan, *, vectors: bool = True) -> tuple[StoredDocument, list[StoredChunk]]:
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
    chunks = [
        StoredChunk(plan.document_id, chunk.chunk_id, chunk.content_hash, vectors)
        for chunk in plan.chunks or ()
    ]
    return StoredDocument(**values), chunks


def lines(*words: str) -> str:
    return "\n\n".join(word * (40 // len(word)) for word in words)


def plan(content: str, before: DocumentPlan | None = None, **more: Any) -> DocumentPlan:
    if before is None:
        return plan_document(document(content, **more), SETTINGS)
    was, chunks = stored(before)
    given = document(content, **more)
    # As the writer does: the chunks of what has not changed are not read.
    return plan_document(given, SETTINGS, was, () if is_unchanged(given, was) else chunks)


def test_a_new_document_embeds_all() -> None:
    made = plan(lines("alpha", "beta"))
    assert (made.status, made.chunk_count) == ("created", 2)
    assert made.to_embed() == made.chunks
    assert not made.writes_nothing
    assert len({chunk.chunk_id for chunk in made.chunks or ()}) == 2


def test_the_same_again_writes_nothing() -> None:
    before = plan(lines("alpha", "beta"))
    again = plan(lines("alpha", "beta"), before)
    assert (again.status, again.chunks, again.to_embed()) == ("unchanged", None, [])
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
    assert is_unchanged(document("Text.", **change), was) is expected
    assert not is_unchanged(document("Other.", **change), was)


def test_kept_chunks_keep_their_ids_and_vectors() -> None:
    before = plan(lines("alpha", "beta", "gamma"))
    after = plan(lines("gamma", "new", "alpha"), before)
    ids = [chunk.chunk_id for chunk in before.chunks or ()]
    assert [chunk.chunk_id for chunk in after.chunks or ()][::2] == [ids[2], ids[0]]
    assert [chunk.piece.content[:3] for chunk in after.to_embed()] == ["new"]
    assert after.status == "replaced"
    assert after.document_id == before.document_id


def test_a_kept_chunk_without_a_vector_is_embedded() -> None:
    before = plan(lines("alpha", "beta"))
    was, chunks = stored(before, vectors=False)
    after = plan_document(document(lines("alpha", "new")), SETTINGS, was, chunks)
    assert len(after.to_embed()) == 2
    assert (after.chunks or [])[0].stored == chunks[0]


def test_equal_chunks_are_kept_one_for_one() -> None:
    before = plan(lines("same", "same", "same"))
    fewer = plan(lines("same", "same"), before)
    more = plan(lines("same", "same", "same", "same"), before)
    assert len({chunk.chunk_id for chunk in fewer.chunks or ()}) == 2
    assert len({chunk.chunk_id for chunk in more.chunks or ()}) == 4
    assert (len(fewer.to_embed()), len(more.to_embed())) == (0, 1)


def test_another_language_keeps_all_chunks() -> None:
    after = plan(lines("alpha", "beta"), plan(lines("alpha", "beta")), language="german")
    assert after.status == "replaced"
    assert after.to_embed() == []
    assert all(chunk.stored is not None for chunk in after.chunks or ())


def test_chunks_of_nobody_are_not_taken() -> None:
    foreign = StoredChunk(uuid4(), uuid4(), hashlib.sha256(b"other").digest(), True)
    was, _ = stored(plan("Text."))
    after = plan_document(document("New."), SETTINGS, was, [foreign])
    assert len(after.to_embed()) == 1


def test_markdown_is_split_at_headings() -> None:
    made = plan("# A\n\nfirst\n\n# B\n\nsecond", document_type=DocumentType.MARKDOWN)
    assert [chunk.piece.headings for chunk in made.chunks or ()] == [("A",), ("B",)]
