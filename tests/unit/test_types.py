"""The enumerations and the results."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pydantic
import pytest

from llmemory import (
    Document,
    DocumentAddResult,
    DocumentListResult,
    DocumentType,
    EmbeddingJob,
    Health,
    NewDocument,
    OwnerStatistics,
    QueueProgress,
    QueueStatistics,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)
from llmemory.search.ranking import grouped

NAMES = (
    "EMAIL REPORT BUSINESS_REPORT TECHNICAL_DOC PRESENTATION LEGAL_DOCUMENT PDF MARKDOWN CODE TEXT "
    "HTML DOCX CHAT GENERAL"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_document_types_by_value_and_name(name: str) -> None:
    member = DocumentType[name]
    assert member.value == name.lower()
    for given in (member, name, name.lower(), name.title(), f" {name} "):
        assert DocumentType(given) is member
    assert member == name.lower()
    assert f"{member}" == name.lower()
    assert json.dumps(member) == f'"{name.lower()}"'


@pytest.mark.parametrize("name", ["VECTOR", "TEXT", "HYBRID"])
def test_search_types_by_value_and_name(name: str) -> None:
    for given in (name, name.lower(), name.title()):
        assert SearchType(given) is SearchType[name]


@pytest.mark.parametrize("value", ["", "nonsense", None, 5, "email,report", "e-mail"])
def test_what_is_no_choice(value: Any) -> None:
    with pytest.raises(ValueError, match="not a valid"):
        DocumentType(value)
    with pytest.raises(ValueError, match="not a valid"):
        SearchType(value)


def hit(document_id: str = "d", score: float = 0.5) -> SearchResult:
    return SearchResult(
        chunk_id="c",
        document_id=document_id,
        document_name="n",
        document_type=DocumentType.EMAIL,
        content="text",
        score=score,
        metadata={"a": [1, None]},
        id_at_origin=None,
        external_id=None,
        document_date=datetime(2025, 1, 31, 9, tzinfo=timezone(timedelta(hours=9))),
        headings=["A"],
        position=0,
        start=0,
        end=4,
        similarity=None,
        lexical_score=1.5,
        vector_rank=None,
        text_rank=1,
    )


def document() -> Document:
    now = datetime.now(UTC)
    return Document(
        document_id="d",
        owner_id="o",
        document_name="n",
        document_type=DocumentType.PDF,
        id_at_origin=None,
        external_id="e",
        document_date=None,
        language="english",
        metadata={},
        chunk_count=1,
        created_at=now,
        updated_at=now,
    )


RESULTS = [
    hit(),
    document(),
    DocumentListResult(documents=[document()], total_count=1, offset=0, limit=20, has_more=False),
    grouped([hit("a"), hit("b"), hit("a", 0.1)]),
    DocumentAddResult(
        document_id="d",
        document_name="n",
        status="created",
        chunks_created=1,
        embeddings_created=1,
        embeddings_queued=0,
        processing_time_ms=1.5,
    ),
    OwnerStatistics(
        owner_id="o",
        document_count=1,
        chunk_count=1,
        embedding_count=1,
        pending_embeddings=0,
        content_bytes=1,
        documents_by_type={DocumentType.EMAIL: 1},
        queue=QueueStatistics(waiting=2, running=1, failed=1, oldest_s=1.5),
    ),
    EmbeddingJob(
        owner_id="o",
        document_id="d",
        document_name="n",
        space_id=1,
        state="failed",
        attempts=2,
        last_error="It broke.",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        available_at=datetime(2026, 1, 1, tzinfo=UTC),
    ),
    QueueProgress(owner_id="o", finished=1, embedded=2, failed=0, problem=None),
    Health(
        healthy=True,
        problem=None,
        schema_name="s",
        revision="1",
        expected_revision="1",
        postgresql_version="18",
        pgvector_version="0.8",
        embedding_model="m",
        embedding_dimensions=3,
        latency_ms=0.1,
    ),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_web_framework_can_return_every_result(result: pydantic.BaseModel) -> None:
    text = result.model_dump_json()
    assert json.loads(text) == result.model_dump(mode="json")
    assert type(result).model_validate_json(text) == result
    assert type(result).model_json_schema(mode="serialization")


def test_fastapi_itself() -> None:
    fastapi = pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    app = fastapi.FastAPI()
    for number, result in enumerate(RESULTS):
        app.get(f"/{number}")(lambda result=result: result)
        app.get(f"/model/{number}", response_model=type(result))(lambda result=result: result)
    client = TestClient(app)
    for number, result in enumerate(RESULTS):
        expected = result.model_dump(mode="json")
        assert client.get(f"/{number}").json() == expected
        assert client.get(f"/model/{number}").json() == expected


def test_times_are_in_utc_and_containers_can_be_changed() -> None:
    found = SearchResultWithDocuments(results=[hit(), hit()], documents=[])
    assert found.results[0].document_date == datetime(2025, 1, 31, tzinfo=UTC)
    assert found.results[0].document_date.tzinfo is UTC
    found.results = found.results[:1]
    found.results.append(hit())
    assert len(found.results) == 2


def test_hits_are_grouped_in_the_order_of_the_best() -> None:
    found = grouped([hit("b", 0.9), hit("a", 0.8), hit("b", 0.7)])
    assert [group.document_id for group in found.documents] == ["b", "a"]
    assert [group.score for group in found.documents] == [0.9, 0.8]
    assert [len(group.results) for group in found.documents] == [2, 1]
    assert grouped([]).documents == []


def test_a_new_document_takes_the_arguments_of_add_document() -> None:
    import inspect

    from llmemory import AsyncMemory

    arguments = set(inspect.signature(AsyncMemory.add_document).parameters)
    assert set(NewDocument.model_fields) == arguments - {"self", "embed", "session"}
    with pytest.raises(pydantic.ValidationError):
        NewDocument(owner_id="a", content="b", metadata={})  # type: ignore[call-arg]
