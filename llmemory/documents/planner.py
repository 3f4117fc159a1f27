"""Planning a write: documents are checked, compared with what is stored, and split."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID

import anyio.to_thread

from llmemory.database.engines import Database, Session
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
from llmemory.errors import DocumentNotFoundError, ValidationError
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.text.languages import AUTO
from llmemory.types import DocumentAddResult, HalfVectors, NewDocument
from llmemory.validation.documents import CheckedDocument, checked_document

__all__ = ["INLINE_CHARACTERS", "Embed", "Planned", "Planner", "Prepared"]

Embed: TypeAlias = Literal["now", "later"]
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


class Planner:
    """Finds out what writing documents takes; it writes nothing and knows no embedder.

    Args:
        database: Where what is stored is read.
        store: Of the schema.
        space: The space whose vectors count as stored.
        by_document: Whether equal texts of different documents are embedded apart.
        settings: Limits, chunk sizes and the language.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        space: Space,
        settings: Settings,
        *,
        by_document: bool,
    ) -> None:
        self._database = database
        self._store = store
        self._space = space
        self._by_document = by_document
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

    async def plan_stored(
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

    async def _planned(
        self,
        documents: list[CheckedDocument],
        stored: list[StoredDocument | None],
        chunks: dict[UUID, StoredChunks],
        before: Prepared | None = None,
    ) -> Planned:
        known = before.vectors if before is not None else None
        by_document = self._by_document

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

    def _is_to_do(self, document: CheckedDocument, stored: StoredDocument, embed: Embed) -> bool:
        """Return whether chunks of a stored document are to be written or embedded."""
        is_pending = embed == "now" and stored.is_pending
        return is_pending or not is_unchanged(document, stored, self._settings)
