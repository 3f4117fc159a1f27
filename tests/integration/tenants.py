"""Every public call on behalf of one of two owners, and what it returns in a comparable form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import anyio.to_thread
from integration.helpers import fetch
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from llmemory import AsyncMemory, LLMemoryError
from llmemory.schema import row_level_security

SHARED = "leave days rule office travel budget server holiday".split()
MARKS = ("alpha", "bravo")
TEAMS = ("red", "blue")
EVERYTHING = 100
# What differs from one database to another, or says how long something took.
INCOMPARABLE = {
    "chunk_id",
    "processing_time_ms",
    "created_at",
    "updated_at",
    "available_at",
    "oldest_s",
    # Equal scores are told apart by ids.
    "rank",
    "vector_rank",
    "text_rank",
}

Reference = tuple[int, int]
"""Owner 0 or 1, and the number of a document."""


@dataclass
class View:
    """One owner, as one layout serves it.

    Attributes:
        memory: Where the owner's documents are.
        owner_id: By which name.
        engine: Of the same role and database.
        url: As a superuser.
        is_guarded: Whether row level security is on.
        ids: The documents of this world.
    """

    memory: AsyncMemory
    owner_id: str
    engine: AsyncEngine
    url: str
    is_guarded: bool = False
    ids: dict[Reference, str] = field(default_factory=dict)

    def id_of(self, reference: Reference) -> str:
        """Return the id of a document, an unknown one if it is not in this world."""
        return self.ids.get(reference) or str(uuid4())

    @asynccontextmanager
    async def session(self) -> Any:
        """A session of the application's own, which has named the owner."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
            await session.connection(execution_options=self.memory.execution_options)
            if self.is_guarded:
                await session.execute(row_level_security.owner_setting(self.owner_id))
            yield session

    def comparable(self, value: Any) -> Any:
        """Return `value` without what is not the same in another database."""
        names = {document_id: reference for reference, document_id in self.ids.items()}
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, Mapping):
            return {
                key: self.comparable(part) for key, part in value.items() if key not in INCOMPARABLE
            }
        if isinstance(value, list | tuple):
            return [self.comparable(part) for part in value]
        if isinstance(value, float):
            return round(value, 6)
        if isinstance(value, str | UUID):
            return names.get(str(value), str(value))
        return value


Call = Callable[[View, int, dict[str, Any], Any], Awaitable[Any]]
"""Runs on behalf of an owner with given arguments, in a session or in none."""

CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    CALLS[function.__name__] = function
    return function


def arguments(random: Random, who: int, number: int) -> dict[str, Any]:
    """Return what a call of any kind may need, with references to documents of both owners."""
    words = random.choices(SHARED, k=random.randint(4, 60))
    return {
        "number": number,
        "content": f"{MARKS[who]} word{number} {' '.join(words)}",
        "team": random.choice(TEAMS),
        "query": f"{random.choice(SHARED)} {random.choice(MARKS)} word{random.randint(0, number)}",
        "references": [(random.randrange(2), random.randrange(number + 1)) for _ in range(6)],
        "limit": random.choice((2, EVERYTHING)),
        "search_type": random.choice(("vector", "text", "hybrid")),
        "embed": random.choice(("now", "later")),
        "filters": random.choice(
            (
                {},
                {"metadata_filter": {"team": "red"}},
                {"document_type": "report"},
                {"id_at_origin": "blue"},
                {"date_from": "2026-02-01"},
            )
        ),
        "is_external": random.random() < 0.5,
        "month": random.randint(1, 3),
    }


def _document(view: View, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "owner_id": view.owner_id,
        "document_name": f"Document {given['number']}",
        "content": given["content"],
        "document_type": "report" if given["number"] % 2 else "general",
        "id_at_origin": given["team"],
        # Both owners use the same few keys.
        "external_id": f"key {given['number'] % 7}" if given["is_external"] else None,
        "additional_metadata": {"team": given["team"]},
        "document_date": f"2026-0{given['month']}-15",
    }


def _noted(view: View, who: int, number: int, document_id: str) -> None:
    # Replaced, a document keeps the number that it was added under.
    if document_id not in view.ids.values():
        view.ids[who, number] = document_id


@call
async def add_document(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    result = await view.memory.add_document(
        **_document(view, given), embed=given["embed"], session=session
    )
    _noted(view, who, given["number"], result.document_id)
    return result


@call
async def add_documents(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    documents = [
        {**_document(view, given), "external_id": f"bulk {number}", "document_name": str(number)}
        for number in range(4)
    ]
    results = await view.memory.add_documents(documents, embed=given["embed"], session=session)
    for number, result in enumerate(results):
        _noted(view, who, 10_000 + number, result.document_id)
    return results


@call
async def add_file(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    path = Path("note.txt")
    await anyio.to_thread.run_sync(path.write_text, given["content"])
    result = await view.memory.add_file(
        view.owner_id, path, external_id="file", embed=given["embed"], session=session
    )
    _noted(view, who, given["number"], result.document_id)
    return result


@call
async def build_document(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    document = await view.memory.build_document(**_document(view, given), embed=given["embed"])
    async with view.session() as own:
        own.add(document)
    _noted(view, who, given["number"], str(document.document_id))
    return document.document_id, document.chunk_count


@call
async def update_document(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    return await view.memory.update_document(
        view.owner_id,
        view.id_of(given["references"][0]),
        content=given["content"],
        session=session,
    )


def _hits(found: list[Any], given: dict[str, Any]) -> Any:
    """Return all there is to know of the hits, or the scores if equal ones may be cut off."""
    values = [hit if isinstance(hit, dict) else hit.model_dump() for hit in found]
    if given["limit"] < EVERYTHING:
        return [hit["score"] for hit in values]
    return sorted(values, key=lambda hit: (-hit["score"], hit["document_name"], hit["content"]))


@call
async def search(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    found = await view.memory.search(
        view.owner_id,
        given["query"],
        search_type=given["search_type"],
        limit=given["limit"],
        context_window=1,
        highlight=True,
        session=session,
        **given["filters"],
    )
    return _hits(found, given)


@call
async def search_with_documents(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    found = await view.memory.search_with_documents(
        view.owner_id,
        given["query"],
        search_type=given["search_type"],
        limit=given["limit"],
        session=session,
        **given["filters"],
    )
    return _hits(found.results, given), len(found.documents)


@call
async def search_statement(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    statement = await view.memory.search_statement(
        view.owner_id,
        given["query"],
        search_type=given["search_type"],
        limit=given["limit"],
        **given["filters"],
    )
    async with view.session() as own:
        rows = (await own.execute(statement)).mappings().all()
    return _hits([dict(row) for row in rows], given)


@call
async def list_documents(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    page = await view.memory.list_documents(
        view.owner_id, limit=given["limit"], session=session, **given["filters"]
    )
    if given["limit"] < EVERYTHING:
        return page.total_count
    return page.total_count, sorted(
        (found.model_dump() for found in page.documents),
        key=lambda found: (found["document_name"], str(found["external_id"])),
    )


@call
async def get_document(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    return await view.memory.get_document(
        view.owner_id, view.id_of(given["references"][0]), session=session
    )


@call
async def get_statistics(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    return await view.memory.get_statistics(view.owner_id, session=session)


@call
async def delete_document(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    await view.memory.delete_document(
        view.owner_id, view.id_of(given["references"][0]), session=session
    )


@call
async def delete_documents(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    ids = [view.id_of(reference) for reference in given["references"]]
    return await view.memory.delete_documents(
        view.owner_id, ids, session=session, **given["filters"]
    )


@call
async def delete_statement(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    keys = [f"key {number}" for _, number in given["references"]]
    statement = await view.memory.delete_statement(view.owner_id, external_ids=keys)
    async with view.session() as own:
        return (await own.execute(statement)).rowcount


@call
async def process_pending_embeddings(
    view: View, who: int, given: dict[str, Any], session: Any
) -> Any:
    return await view.memory.process_pending_embeddings(view.owner_id, limit=given["limit"])


@call
async def run_worker(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    asked = iter((False,))
    return await view.memory.run_worker(view.owner_id, should_stop=lambda: next(asked, True))


@call
async def list_jobs(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    jobs = await view.memory.list_jobs(view.owner_id, limit=EVERYTHING)
    return sorted((job.model_dump() for job in jobs), key=lambda job: job["document_name"])


@call
async def requeue_jobs(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    fetch(
        view.url,
        f'UPDATE "{view.memory.schema}".embedding_jobs SET state = %s WHERE owner_id = %s',
        "failed",
        view.owner_id,
    )
    ids = [view.id_of(reference) for reference in given["references"]]
    one_by_one = await view.memory.requeue_jobs(view.owner_id, document_ids=ids)
    return one_by_one, await view.memory.requeue_jobs(view.owner_id)


@call
async def delete_owner(view: View, who: int, given: dict[str, Any], session: Any) -> Any:
    return await view.memory.delete_owner(view.owner_id, session=session)


WITHOUT_SESSION = {
    "build_document",
    "delete_statement",
    "list_jobs",
    "process_pending_embeddings",
    "requeue_jobs",
    "run_worker",
    "search_statement",
}
ABOUT_NO_OWNER = {
    "close",
    "drop_space",
    "from_engine",
    "health",
    "initialize",
    "list_spaces",
    "maintain",
    "reembed",
}


async def outcome(view: View, name: str, who: int, given: dict[str, Any], session: Any) -> Any:
    """Return what a call returns or raises, comparable with the same call elsewhere."""
    try:
        value = await CALLS[name](view, who, given, session)
    except LLMemoryError as error:
        return type(error).__name__
    return view.comparable(value)
