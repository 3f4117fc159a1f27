"""The write path: plan, embed outside any transaction, then write in one."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias
from uuid import UUID

import anyio
import anyio.to_thread

from llmemory import models
from llmemory.database.engines import Database, Session
from llmemory.documents.assembly import assembled
from llmemory.documents.ingestion import (
    DocumentPlan,
    PlannedTexts,
    StoredChunks,
    StoredDocument,
    is_unchanged,
    plan_document,
    plan_texts,
    rows_by_hash,
)
from llmemory.documents.store import Store, stored_document
from llmemory.embedding.base import Embedder, concurrency_of, embed_checked
from llmemory.embedding.contexts import Contexts
from llmemory.errors import ConflictError, DocumentNotFoundError, ValidationError
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.text.languages import AUTO
from llmemory.types import DocumentAddResult, HalfVectors, NewDocument
from llmemory.validation.documents import CheckedDocument, checked_document

__all__ = ["Embed", "Planned", "Prepared", "Writer"]

Embed: TypeAlias = Literal["now", "later"]
ATTEMPTS = 40
FIRST_WAIT_S = 0.002
# Checking and splitting more text than this would hold up the event loop; a thread does it.
INLINE_CHARACTERS = 50_000
_RESULT_FIELDS = set(DocumentAddResult.model_fields)


@dataclass
class Planned:
    """Documents on their way: split, not yet embedded.

    Attributes:
        texts: What is to be embedded.
        known: Vectors that an attempt before has made.
    """

    documents: list[CheckedDocument]
    plans: list[DocumentPlan]
    texts: PlannedTexts
    known: HalfVectors | None = None
    started: float = field(default_factory=time.perf_counter)

    def prepared(self, vectors: HalfVectors | None) -> Prepared:
        """Return this with its vectors."""
        return Prepared(self.documents, self.plans, self.texts.rows, vectors, self.started)


@dataclass
class Prepared:
    """Documents on their way: split and embedded, not yet written.

    Attributes:
        rows: For each chunk to embed, in the order of the plans, which of the vectors it has.
        vectors: One for each different text, or None where they are left for later.
    """

    documents: list[CheckedDocument]
    plans: list[DocumentPlan]
    rows: Sequence[int]
    vectors: HalfVectors | None
    started: float

    def results(self, embed: Embed) -> list[DocumentAddResult]:
        """Return what was done, once it is written."""
        spent = (time.perf_counter() - self.started) * 1000 / len(self.plans)
        return [_result(plan, embed, spent) for plan in self.plans]


class Writer:
    """Adds and replaces documents, one or many, by one path.

    Attributes:
        max_concurrency: How many calls of the embedder it has under way at once.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        embedder: Embedder,
        space: Space,
        contexts: Contexts,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = store
        self._embedder = embedder
        self._space = space
        self._contexts = contexts
        self._settings = settings
        self.max_concurrency = concurrency_of(embedder)
        self._turns = anyio.CapacityLimiter(self.max_concurrency)

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
            return await anyio.to_thread.run_sync(self.check_now, document, index)
        return self.check_now(document, index)

    def check_now(
        self, document: NewDocument | Mapping[str, Any], index: int | None
    ) -> CheckedDocument:
        """Return `document` checked, by this thread."""
        try:
            return checked_document(document, self._settings)
        except ValidationError as error:
            if index is None:
                raise
            raise ValidationError(
                f"Document {index}: {error}", field=error.field, index=index
            ) from None

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
        planned = await self.plan(documents, embed=embed, session=session)
        prepared = await self.embed(planned, embed=embed)
        return await self.commit(prepared, embed=embed, session=session)

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
        before: Prepared | None = None
        while True:
            attempt += 1
            planned = await self._plan_one(
                changes, owner_id, document_id, embed=embed, session=session, before=before
            )
            planned.started = started
            before = prepared = await self.embed(planned, embed=embed)
            if await self._is_written(prepared, session, attempt):
                return prepared.results(embed)[0]

    async def build(
        self,
        given: Mapping[str, Any],
        *,
        embed: Embed,
        session: Session | None,
        document_id: UUID | None,
    ) -> models.Document:
        """Return what ``write`` would do for one document as an object, and write nothing.

        Args:
            given: The arguments of ``add_document``.
            embed: "now", or "later" to attach a job.
            session: The caller's transaction to read in what is stored.
            document_id: The document that it replaces, if that is not told by its external_id.

        Raises:
            ConflictError: Others changed the document again and again.
            DocumentNotFoundError: The owner has no document of this id.
            ValidationError: A value may not be stored.
        """
        document = await self.check(given)
        if document.external_id is None:
            # Named by its id, a document keeps its key.
            given = {name: value for name, value in given.items() if name != "external_id"}
        before: Prepared | None = None
        for _ in range(ATTEMPTS):
            if document_id is None:
                planned = await self.plan([document], embed=embed, session=session, before=before)
            else:
                planned = await self._plan_one(
                    given,
                    document.owner_id,
                    document_id,
                    embed=embed,
                    session=session,
                    before=before,
                )
            before = prepared = await self.embed(planned, embed=embed)
            (plan,) = prepared.plans
            stored = None
            if plan.stored is not None:
                async with self._database.connect(
                    session, owner_id=document.owner_id
                ) as connection:
                    stored = await self._store.object_of(connection, plan)
                if stored is None:
                    continue
            assemble = partial(
                assembled,
                plan,
                stored,
                schema=self._store.schema,
                space_id=self._space.space_id,
                vectors=prepared.vectors,
                rows=prepared.rows,
            )
            if len(document.content) > INLINE_CHARACTERS:
                return await anyio.to_thread.run_sync(assemble)
            return assemble()
        raise ConflictError("Others change this document all the time; try again.")

    async def _plan_one(
        self,
        changes: Mapping[str, Any],
        owner_id: str,
        document_id: UUID,
        *,
        embed: Embed,
        session: Session | None,
        before: Prepared | None,
    ) -> Planned:
        """Split what the stored document of this id becomes by `changes`."""
        async with self._database.connect(session, owner_id=owner_id) as connection:
            rows = await self._store.find(
                connection, owner_id, self._space.space_id, document_ids=[document_id]
            )
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
            if self._is_to_do(document, stored, embed):
                chunks = await self._store.chunks_of(
                    connection, owner_id, [document_id], self._space.space_id
                )
        return await self._planned([document], [stored], chunks, before)

    async def plan(
        self,
        documents: list[CheckedDocument],
        *,
        embed: Embed,
        session: Session | None = None,
        before: Prepared | None = None,
    ) -> Planned:
        """Split `documents` and find out which of their texts are to be embedded.

        Args:
            documents: No two with the same owner and external_id.
            embed: "now", or "later" to leave jobs.
            session: The caller's transaction to read in.
            before: What an attempt before has embedded is not embedded again.
        """
        started = time.perf_counter() if before is None else before.started
        stored, chunks = await self._read_stored(documents, embed, session)
        planned = await self._planned(documents, stored, chunks, before)
        planned.started = started
        return planned

    def calls_of(self, planned: Planned, *, embed: Embed) -> int:
        """Return how often the embedder is called for what is planned."""
        if embed == "later":
            return 0
        return -(-len(planned.texts.new) // self._settings.embedding_batch_size)

    async def embed(self, planned: Planned, *, embed: Embed) -> Prepared:
        """Make the vectors of what is planned, or none where they are left for later.

        Raises:
            EmbeddingError: The embedder failed.
        """
        if embed == "later":
            return planned.prepared(None)
        vectors = await embed_checked(
            self._embedder,
            await self._contexts.texts(planned.texts.new),
            purpose="document",
            batch_size=self._settings.embedding_batch_size,
            turns=self._turns,
        )
        if planned.known is not None:
            import numpy as np

            vectors = np.concatenate([planned.known, vectors])
        return planned.prepared(vectors)

    async def _planned(
        self,
        documents: list[CheckedDocument],
        stored: list[StoredDocument | None],
        chunks: dict[UUID, StoredChunks],
        before: Prepared | None = None,
    ) -> Planned:
        known = before.vectors if before is not None else None
        by_document = self._contexts.are_made

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
                return plans, plan_texts(plans, by_document=by_document)
            rows = rows_by_hash(before.plans, before.rows, by_document=by_document)
            return plans, plan_texts(plans, rows, len(known), by_document=by_document)

        if sum(len(document.content) for document in documents) > INLINE_CHARACTERS:
            plans, texts = await anyio.to_thread.run_sync(plan)
        else:
            plans, texts = plan()
        return Planned(documents, plans, texts, known)

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
                async with self._database.reading(connection, owner_id):
                    rows = await self._store.find(
                        connection, owner_id, self._space.space_id, external_ids=list(numbers)
                    )
                    changed = []
                    for stored in map(stored_document, rows):
                        number = numbers[stored.external_id or ""]
                        found[number] = stored
                        if self._is_to_do(documents[number], stored, embed):
                            changed.append(stored.document_id)
                    if changed:
                        chunks |= await self._store.chunks_of(
                            connection, owner_id, changed, self._space.space_id
                        )
        return found, chunks

    async def commit(
        self, prepared: Prepared, *, embed: Embed, session: Session | None = None
    ) -> list[DocumentAddResult]:
        """Write what is prepared in one transaction, planned anew where another call came first.

        Raises:
            ConflictError: Concurrent changes won every time.
        """
        attempt = 1
        while not await self._is_written(prepared, session, attempt):
            attempt += 1
            planned = await self.plan(
                prepared.documents, embed=embed, session=session, before=prepared
            )
            prepared = await self.embed(planned, embed=embed)
        return prepared.results(embed)

    async def _is_written(self, prepared: Prepared, session: Session | None, attempt: int) -> bool:
        """Write; return False where what it was planned for has changed, to be planned anew."""
        plans = [plan for plan in prepared.plans if not plan.writes_nothing]
        if not plans:
            return True
        try:
            async with self._database.transaction(session) as connection:
                for part, rows in self._parts(plans, prepared.rows):
                    await self._database.writing(connection, part[0].document.owner_id)
                    await self._store.write(
                        connection,
                        part,
                        space=self._space,
                        vectors=prepared.vectors,
                        rows=rows,
                    )
        except ConflictError:
            # A caller's transaction has failed as a whole: only the caller can begin it anew.
            if session is not None or attempt == ATTEMPTS:
                raise
            # Of several writers one gets through each time; waiting at random keeps them apart.
            await anyio.sleep(random.uniform(0, min(1.0, FIRST_WAIT_S * 2**attempt)))
            return False
        return True

    def _parts(
        self, plans: list[DocumentPlan], rows: Sequence[int]
    ) -> Sequence[tuple[list[DocumentPlan], Sequence[int]]]:
        """Return what is written at once: all, or where policies ask whose it is, an owner's."""
        if not self._settings.row_level_security:
            return [(plans, rows)]
        parts: defaultdict[str, tuple[list[DocumentPlan], list[int]]] = defaultdict(
            lambda: ([], [])
        )
        start = 0
        for plan in plans:
            part, rows_of_part = parts[plan.document.owner_id]
            part.append(plan)
            end = start + plan.to_embed_count
            rows_of_part.extend(rows[start:end])
            start = end
        # In one order everywhere, or two calls could wait for each other's locks.
        return [parts[owner_id] for owner_id in sorted(parts)]

    def _is_to_do(self, document: CheckedDocument, stored: StoredDocument, embed: Embed) -> bool:
        """Return whether chunks of a stored document are to be written or embedded."""
        is_pending = embed == "now" and stored.is_pending
        return is_pending or not is_unchanged(document, stored, self._settings)


def _result(plan: DocumentPlan, embed: Embed, spent_ms: float) -> DocumentAddResult:
    wanting = plan.to_embed_count
    # Not checked again, and with one set of fields for all: a bulk call returns very many.
    return DocumentAddResult.model_construct(
        _RESULT_FIELDS,
        document_id=str(plan.document_id),
        document_name=plan.document.document_name,
        status=plan.status,
        chunks_created=0 if plan.status == "unchanged" else len(plan.chunks or ()),
        embeddings_created=wanting if embed == "now" else 0,
        embeddings_queued=wanting if embed == "later" else 0,
        processing_time_ms=spent_ms,
        error=None,
    )
