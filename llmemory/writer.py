"""The write path: plan, embed outside any transaction, then write in one."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias
from uuid import UUID

import anyio
import anyio.to_thread

from llmemory.database import Database, Session
from llmemory.embedding.base import Embedder, embed_checked
from llmemory.errors import ConflictError, DocumentNotFoundError, ValidationError
from llmemory.ingestion import (
    DocumentPlan,
    PlannedTexts,
    StoredChunks,
    StoredDocument,
    is_unchanged,
    plan_document,
    plan_texts,
    rows_by_hash,
)
from llmemory.languages import AUTO
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.store import Store, stored_document
from llmemory.types import DocumentAddResult, HalfVectors, NewDocument, Progress
from llmemory.validation import CheckedDocument, checked_document

__all__ = ["Documents", "Embed", "Writer"]

Embed: TypeAlias = Literal["now", "later"]
Documents: TypeAlias = (
    Iterable[NewDocument | Mapping[str, Any]] | AsyncIterable[NewDocument | Mapping[str, Any]]
)

Key: TypeAlias = tuple[str, str]

ATTEMPTS = 40
FIRST_WAIT_S = 0.002
BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1_000_000
# Checking and splitting more text than this would hold up the event loop; a thread does it.
INLINE_CHARACTERS = 50_000
ITEMS_A_TURN = 64
TURN_S = 0.05


@dataclass
class _Prepared:
    """A batch on its way: planned and embedded, not yet written.

    Attributes:
        rows: For each chunk to embed, in the order of the plans, which of the vectors it has.
        vectors: One for each different text, or None where they are left for later.
    """

    documents: list[CheckedDocument]
    plans: list[DocumentPlan]
    rows: Sequence[int]
    vectors: HalfVectors | None
    started: float = field(default_factory=time.perf_counter)

    def results(self, embed: Embed) -> list[DocumentAddResult]:
        """Return what was done, once it is written."""
        spent = (time.perf_counter() - self.started) * 1000 / len(self.plans)
        return [_result(plan, embed, spent) for plan in self.plans]


class Writer:
    """Adds and replaces documents, one or many, by one path."""

    def __init__(
        self,
        database: Database,
        store: Store,
        embedder: Embedder,
        space: Space,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = store
        self._embedder = embedder
        self._space = space
        self._settings = settings

    async def check(
        self, document: NewDocument | Mapping[str, Any], index: int | None = None
    ) -> CheckedDocument:
        """Return `document` checked; what takes long is done in a worker thread.

        Raises:
            ValidationError: It may not be stored; ``index`` says which of many it is.
        """
        given, language = (
            (document.content, document.language)
            if isinstance(document, NewDocument)
            else (document.get("content"), document.get("language"))
            if isinstance(document, Mapping)
            else (None, None)
        )
        is_long = isinstance(given, str) and len(given) > INLINE_CHARACTERS
        # The detector of languages is loaded at its first use.
        if is_long or AUTO in {str(language).lower(), self._settings.language}:
            return await anyio.to_thread.run_sync(self._check, document, index)
        return self._check(document, index)

    def _check(
        self, document: NewDocument | Mapping[str, Any], index: int | None
    ) -> CheckedDocument:
        try:
            return checked_document(document, self._settings)
        except ValidationError as error:
            if index is None:
                raise
            raise ValidationError(
                f"Document {index}: {error}", field=error.field, index=index
            ) from None

    def _check_all(self, documents: Sequence[NewDocument | Mapping[str, Any]]) -> None:
        for index, document in enumerate(documents):
            self._check(document, index)

    async def write(
        self, documents: list[CheckedDocument], *, embed: Embed, session: Session | None = None
    ) -> list[DocumentAddResult]:
        """Write `documents` in one transaction; return one result each, in order.

        Args:
            documents: No two with the same owner and external_id.
            embed: "now", or "later" to leave jobs.
            session: The caller's transaction to join.

        Raises:
            ConflictError: Concurrent changes won every time, or once within the caller's
                transaction, which only the caller can begin anew.
        """
        return await self._commit(await self._prepare(documents, embed, session), embed, session)

    async def update(
        self,
        owner_id: str,
        document_id: UUID,
        changes: Mapping[str, Any],
        *,
        embed: Embed,
        session: Session | None,
    ) -> DocumentAddResult:
        """Change what `changes` names of one document, by the names of ``add_document``.

        Raises:
            DocumentNotFoundError: The owner has no such document.
            ValidationError: A new value may not be stored.
        """
        started = time.perf_counter()
        attempt = 0
        before: _Prepared | None = None
        while True:
            attempt += 1
            async with self._database.connect(session) as connection:
                rows = await self._store.find(connection, owner_id, document_ids=[document_id])
                if not rows:
                    raise DocumentNotFoundError(
                        "This owner has no document of this id; see list_documents.",
                        document_id=str(document_id),
                    )
                stored = stored_document(rows[0])
                values = {
                    "owner_id": owner_id,
                    "content": rows[0].content,
                    "document_name": stored.document_name,
                    "document_type": stored.document_type,
                    "id_at_origin": stored.id_at_origin,
                    "external_id": stored.external_id,
                    "additional_metadata": stored.metadata,
                    "document_date": stored.document_date,
                    "language": stored.language,
                }
                document = await self.check({**values, **changes})
                chunks: dict[UUID, StoredChunks] = {}
                if _is_to_do(document, stored, embed):
                    chunks = await self._store.chunks_of(
                        connection, owner_id, [document_id], self._space.space_id
                    )
            prepared = await self._planned([document], [stored], chunks, embed, before)
            prepared.started = started
            before = prepared
            if await self._is_written(prepared, session, attempt):
                return prepared.results(embed)[0]

    async def stream(
        self,
        documents: Documents,
        *,
        embed: Embed,
        on_progress: Callable[[Progress], Any] | None,
        session: Session | None,
    ) -> list[DocumentAddResult]:
        """Write any number of documents in batches, the next being embedded while one is written.

        Raises:
            ValidationError: A document may not be stored. Of a sequence nothing is stored then;
                of an iterator what came before it may be.
        """
        total = len(documents) if isinstance(documents, Sequence) else None
        if isinstance(documents, Sequence) and not isinstance(documents, str):
            await anyio.to_thread.run_sync(self._check_all, documents)
        results: list[DocumentAddResult] = []
        chunks = 0

        async def commit(prepared: _Prepared) -> None:
            nonlocal chunks
            written = await self._commit(prepared, embed, session)
            results.extend(written)
            chunks += sum(result.chunks_created for result in written)
            if on_progress is not None:
                on_progress(Progress(documents=len(results), chunks=chunks, total=total))

        if session is not None:
            # One transaction is one connection: its statements cannot overlap.
            async with aclosing(self._batches(documents)) as batches:
                async for batch in batches:
                    await commit(await self._prepare(batch, embed, session))
            return results
        await self._pipeline(documents, embed, commit)
        return results

    async def _pipeline(
        self,
        documents: Documents,
        embed: Embed,
        commit: Callable[[_Prepared], Awaitable[None]],
    ) -> None:
        """Prepare each batch while the one before it is committed."""
        send, receive = anyio.create_memory_object_stream[_Prepared](0)
        is_idle = anyio.Event()

        async def produce() -> None:
            nonlocal is_idle
            before: frozenset[Key] = frozenset()
            # The consumer has failed, and its error is the one to tell.
            with send, suppress(anyio.BrokenResourceError):
                async with aclosing(self._batches(documents)) as batches:
                    async for batch in batches:
                        keys = frozenset(filter(None, map(_key, batch)))
                        if keys & before:
                            # Looking for what is stored would miss what is being written.
                            await is_idle.wait()
                        prepared = await self._prepare(batch, embed, None)
                        is_idle = anyio.Event()
                        await send.send(prepared)
                        before = keys

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce)
                with receive:
                    async for prepared in receive:
                        await commit(prepared)
                        is_idle.set()
        except BaseExceptionGroup as group:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from group
            error = _first(group)
            raise error from error.__cause__

    async def _batches(self, documents: Documents) -> AsyncGenerator[list[CheckedDocument]]:
        """Yield batches of bounded size, none with one key twice."""
        batch: list[CheckedDocument] = []
        keys: set[Key] = set()
        characters = 0
        index = 0
        async with aclosing(_asynchronous(documents)) as items:
            async for document in items:
                checked = await self.check(document, index)
                index += 1
                key = _key(checked)
                if batch and (
                    key in keys
                    or len(batch) >= BATCH_DOCUMENTS
                    or characters + len(checked.content) > BATCH_CHARACTERS
                ):
                    yield batch
                    batch, keys, characters = [], set(), 0
                batch.append(checked)
                characters += len(checked.content)
                if key is not None:
                    keys.add(key)
        if batch:
            yield batch

    async def _prepare(
        self,
        documents: list[CheckedDocument],
        embed: Embed,
        session: Session | None,
        before: _Prepared | None = None,
    ) -> _Prepared:
        """Plan and embed; texts that an attempt `before` has embedded are not embedded again."""
        started = time.perf_counter() if before is None else before.started
        stored, chunks = await self._read_stored(documents, embed, session)
        prepared = await self._planned(documents, stored, chunks, embed, before)
        prepared.started = started
        return prepared

    async def _planned(
        self,
        documents: list[CheckedDocument],
        stored: list[StoredDocument | None],
        chunks: dict[UUID, StoredChunks],
        embed: Embed,
        before: _Prepared | None = None,
    ) -> _Prepared:
        known = before.vectors if before is not None else None

        def plan() -> tuple[list[DocumentPlan], PlannedTexts]:
            plans = [
                plan_document(
                    document,
                    self._settings,
                    found,
                    chunks.get(found.document_id) if found is not None else None,
                )
                for document, found in zip(documents, stored, strict=True)
            ]
            if before is None or known is None:
                return plans, plan_texts(plans)
            rows = rows_by_hash(before.plans, before.rows)
            return plans, plan_texts(plans, rows, len(known))

        if sum(len(document.content) for document in documents) > INLINE_CHARACTERS:
            plans, texts = await anyio.to_thread.run_sync(plan)
        else:
            plans, texts = plan()
        if embed == "later":
            return _Prepared(documents, plans, texts.rows, None)
        vectors = await embed_checked(
            self._embedder,
            texts.new,
            purpose="document",
            batch_size=self._settings.embedding_batch_size,
        )
        if known is not None:
            import numpy as np

            vectors = np.concatenate([known, vectors])
        return _Prepared(documents, plans, texts.rows, vectors)

    async def _read_stored(
        self, documents: list[CheckedDocument], embed: Embed, session: Session | None
    ) -> tuple[list[StoredDocument | None], dict[UUID, StoredChunks]]:
        """Return what each document replaces, and the chunks of those that there is work on."""
        found: list[StoredDocument | None] = [None] * len(documents)
        chunks: dict[UUID, StoredChunks] = {}
        wanted: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for number, document in enumerate(documents):
            if document.external_id is not None:
                wanted[document.owner_id][document.external_id] = number
        if not wanted:
            return found, chunks
        async with self._database.connect(session) as connection:
            for owner_id, numbers in wanted.items():
                rows = await self._store.find(connection, owner_id, external_ids=list(numbers))
                changed = []
                for stored in map(stored_document, rows):
                    number = numbers[stored.external_id or ""]
                    found[number] = stored
                    if _is_to_do(documents[number], stored, embed):
                        changed.append(stored.document_id)
                if changed:
                    chunks |= await self._store.chunks_of(
                        connection, owner_id, changed, self._space.space_id
                    )
        return found, chunks

    async def _commit(
        self, prepared: _Prepared, embed: Embed, session: Session | None
    ) -> list[DocumentAddResult]:
        attempt = 1
        while not await self._is_written(prepared, session, attempt):
            attempt += 1
            prepared = await self._prepare(prepared.documents, embed, session, prepared)
        return prepared.results(embed)

    async def _is_written(self, prepared: _Prepared, session: Session | None, attempt: int) -> bool:
        """Write; return False where what it was planned for has changed, to be planned anew."""
        plans = [plan for plan in prepared.plans if not plan.writes_nothing]
        if not plans:
            return True
        try:
            async with self._database.transaction(session) as connection:
                await self._store.write(
                    connection,
                    plans,
                    space_id=self._space.space_id,
                    vectors=prepared.vectors,
                    rows=prepared.rows,
                )
        except ConflictError:
            # A caller's transaction has failed as a whole: only the caller can begin it anew.
            if session is not None or attempt == ATTEMPTS:
                raise
            # Of several writers one gets through each time; waiting at random keeps them apart.
            await anyio.sleep(random.uniform(0, min(1.0, FIRST_WAIT_S * 2**attempt)))
            return False
        return True


def _is_to_do(document: CheckedDocument, stored: StoredDocument, embed: Embed) -> bool:
    """Return whether chunks of a stored document are to be written or embedded."""
    return not is_unchanged(document, stored) or (embed == "now" and stored.is_pending)


def _result(plan: DocumentPlan, embed: Embed, spent_ms: float) -> DocumentAddResult:
    wanting = plan.to_embed_count
    return DocumentAddResult(
        document_id=str(plan.document_id),
        document_name=plan.document.document_name,
        status=plan.status,
        chunks_created=0 if plan.status == "unchanged" else len(plan.chunks or ()),
        embeddings_created=wanting if embed == "now" else 0,
        embeddings_queued=wanting if embed == "later" else 0,
        processing_time_ms=spent_ms,
    )


def _key(document: CheckedDocument) -> Key | None:
    external_id = document.external_id
    return None if external_id is None else (document.owner_id, external_id)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _asynchronous(
    documents: Documents,
) -> AsyncGenerator[NewDocument | Mapping[str, Any]]:
    """Yield the documents one by one; a generator that is left half-read is closed."""
    if isinstance(documents, AsyncGenerator):
        async with aclosing(documents):
            async for document in documents:
                yield document
        return
    if isinstance(documents, AsyncIterable):
        async for document in documents:
            yield document
        return
    if isinstance(documents, Mapping | str) or not isinstance(documents, Iterable):
        raise ValidationError(
            "documents must be an iterable of NewDocument or mappings, "
            f"not {type(documents).__name__}.",
            field="documents",
        )
    if isinstance(documents, Sequence):
        for document in documents:
            yield document
        return
    # The caller's own code may read files or a database: a worker thread runs it.
    iterator = iter(documents)
    try:
        while taken := await anyio.to_thread.run_sync(_taken, iterator):
            for document in taken:
                yield document
    finally:
        if isinstance(iterator, Generator):
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(iterator.close)


def _taken(
    documents: Iterator[NewDocument | Mapping[str, Any]],
) -> list[NewDocument | Mapping[str, Any]]:
    """Take some of `documents`, and no more once that lasts: a thread cannot be interrupted."""
    until = time.perf_counter() + TURN_S
    taken = []
    for document in islice(documents, ITEMS_A_TURN):
        taken.append(document)
        if time.perf_counter() > until:
            break
    return taken
