"""``build_document``: what the caller's own session writes is what ``add_document`` writes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from integration.built_documents import DETAILS, SHORTER, TEXT, engine, written
from integration.helpers import broken_documents, fetch, rows
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from llmemory import (
    AsyncMemory,
    DocumentNotFoundError,
    ValidationError,
)
from llmemory.models import Document, EmbeddingJob

__all__ = ["engine"]

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("embed", ["now", "later"])
@pytest.mark.parametrize("before", [None, TEXT])
async def test_it_writes_what_add_document_writes(
    memory: AsyncMemory, engine: Engine, database_url: str, embed: Any, before: str | None
) -> None:
    for owner in ("added", "built"):
        if before is not None:
            await memory.add_document(owner, "Old", before, external_id="h", embed=embed)
    options = {**DETAILS, "external_id": "h", "embed": embed}
    await memory.add_document("added", "Handbook", SHORTER, **options)
    document = await memory.build_document("built", "Handbook", SHORTER, **options)
    with Session(engine) as session:
        session.add(document)
        session.commit()
    assert written(database_url, "built") == written(database_url, "added")
    assert not broken_documents(database_url)
    await memory.process_pending_embeddings()
    hits = [await memory.search(owner, "zero four") for owner in ("built", "added")]
    assert [hit.content for hit in hits[0]] == [hit.content for hit in hits[1]]
    assert hits[0][0].score == hits[1][0].score


async def test_replacing_changes_as_little_as_possible(
    memory: AsyncMemory, engine: Engine, database_url: str, statements: Any
) -> None:
    added = await memory.add_document("acme", "Handbook", TEXT, external_id="h")
    kept = "SELECT chunk_id FROM llmemory.chunks WHERE content LIKE 'two%'"
    before = fetch(database_url, kept)
    document = await memory.build_document("acme", "Handbook", SHORTER, external_id="h")
    assert str(document.document_id) == added.document_id
    assert sum(len(chunk.embeddings) for chunk in document.chunks if "zero" in chunk.content) == 1
    with Session(engine) as session:
        session.add(document)
        session.flush()
        assert [chunk.position for chunk in document.chunks] == list(range(len(document.chunks)))
        session.commit()
    assert fetch(database_url, kept) == before
    assert not broken_documents(database_url)
    assert rows(database_url)["documents"] == 1


async def test_what_is_unchanged_is_not_written(
    memory: AsyncMemory, engine: Engine, database_url: str
) -> None:
    await memory.add_document("acme", "Handbook", TEXT, external_id="h", **DETAILS)
    version = fetch(database_url, "SELECT updated_at, xmin FROM llmemory.documents")
    document = await memory.build_document("acme", "Handbook", TEXT, external_id="h", **DETAILS)
    with Session(engine) as session:
        session.add(document)
        assert not session.is_modified(document)
        session.commit()
    assert fetch(database_url, "SELECT updated_at, xmin FROM llmemory.documents") == version
    renamed = await memory.build_document("acme", "New", TEXT, external_id="h", **DETAILS)
    with Session(engine) as session:
        session.add(renamed)
        session.commit()
    assert (await memory.list_documents("acme")).documents[0].document_name == "New"
    assert not broken_documents(database_url)


async def test_vectors_made_of_what_was_left_for_later(
    memory: AsyncMemory, engine: Engine, database_url: str
) -> None:
    await memory.add_document("acme", "a", TEXT, external_id="h", embed="later")
    document = await memory.build_document("acme", "a", TEXT, external_id="h")
    # The worker was faster with another one.
    with Session(engine) as session:
        session.add(document)
        session.commit()
    found = rows(database_url)
    assert (found["embedding_jobs"], found["embeddings"]) == (0, found["chunks"])


async def test_replaced_by_its_id(memory: AsyncMemory, engine: Engine, database_url: str) -> None:
    plain = await memory.add_document("acme", "a", "Leave.")
    keyed = await memory.add_document("acme", "b", "Leave.", external_id="k")
    with Session(engine) as session:
        for number, added in enumerate((plain, keyed)):
            document = await memory.build_document(
                "acme", f"new {number}", "Holidays.", document_id=added.document_id
            )
            session.add(document)
        session.commit()
    found = fetch(
        database_url,
        "SELECT document_id, document_name, external_id, content "
        "FROM llmemory.documents ORDER BY document_name",
    )
    assert found == [
        (UUID(plain.document_id), "new 0", None, "Holidays."),
        (UUID(keyed.document_id), "new 1", "k", "Holidays."),
    ]
    with pytest.raises(DocumentNotFoundError):
        await memory.build_document("other", "a", "Leave.", document_id=plain.document_id)


async def test_a_change_by_the_orm_counts_as_one(memory: AsyncMemory, engine: Engine) -> None:
    await memory.add_document("acme", "a", TEXT, external_id="h")
    document = await memory.build_document("acme", "mine", SHORTER, external_id="h")
    with Session(engine) as session, session.begin():
        session.scalars(select(Document)).one().document_name = "theirs"
    with Session(engine) as session:
        session.add(document)
        with pytest.raises(StaleDataError):
            session.commit()


async def test_arguments_are_checked_as_always(memory: AsyncMemory) -> None:
    with pytest.raises(ValidationError):
        await memory.build_document("acme", "", "Leave.")
    with pytest.raises(ValidationError):
        await memory.build_document("acme", "a", "Leave.", embed="never")  # type: ignore[arg-type]


@pytest.mark.parametrize("embed", ["now", "later"])
async def test_a_job_that_was_finished_in_between(
    memory: AsyncMemory, engine: Engine, database_url: str, embed: Any
) -> None:
    await memory.add_document("acme", "a", TEXT, external_id="h", embed="later")
    options = {"external_id": "h", "embed": embed}
    document = await memory.build_document("acme", "a", SHORTER, **options)
    await memory.process_pending_embeddings()
    with Session(engine) as session:
        session.add(document)
        with pytest.raises((IntegrityError, StaleDataError)):
            session.commit()
    with Session(engine) as session:
        session.add(await memory.build_document("acme", "a", SHORTER, **options))
        session.commit()
        jobs = session.scalars(select(EmbeddingJob)).all()
        assert len(jobs) == (embed == "later")
    assert not broken_documents(database_url)
