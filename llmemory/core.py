"""``AsyncMemory``: the library's use cases, in the order a reader meets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from os import PathLike
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from uuid import UUID
from weakref import WeakKeyDictionary

from pydantic import SecretStr

from llmemory import embedding, files, migrate
from llmemory.database import Database, Session
from llmemory.embedding.base import Embedder, checked_embedder, embed_checked, provider_of
from llmemory.errors import (
    ConfigurationError,
    DocumentNotFoundError,
    SchemaError,
    SchemaTooNew,
    ValidationError,
)
from llmemory.filters import Filters
from llmemory.health import check_health
from llmemory.maintenance import Maintenance, analyze_after_bulk
from llmemory.models import tables_for
from llmemory.queue import Queue
from llmemory.ranking import grouped
from llmemory.retrieval import run_search
from llmemory.settings import Settings, checked_schema
from llmemory.spaces import Space, open_space
from llmemory.store import Store
from llmemory.types import (
    Document,
    DocumentAddResult,
    DocumentListResult,
    DocumentType,
    Health,
    MaintenanceProgress,
    MaintenanceResult,
    OwnerStatistics,
    Progress,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)
from llmemory.validation import (
    checked_document_ids,
    checked_external_ids,
    checked_filters,
    checked_identifier,
    checked_page,
    checked_search,
    document_uuid,
)
from llmemory.vector_indexes import VectorIndexes
from llmemory.writer import Documents, Embed, Writer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["AsyncMemory"]

Identifier: TypeAlias = str | int | UUID
"""An id of yours; int and UUID become text."""

Moment: TypeAlias = datetime | date | str
"""A point in time; a naive one is UTC, text is ISO 8601."""

DEFAULT_ALPHA = 0.5
DELETE_BATCH = 500


class AsyncMemory:
    """A memory of documents in PostgreSQL, for asyncio applications.

    Every document belongs to an owner, and every search is within one owner. The memory connects,
    migrates its schema and checks it at the first call that needs the database, or when
    ``initialize`` is called. It may be used from several event loops.

    Args:
        connection_string: ``postgresql://`` (asyncpg), ``postgresql+asyncpg://`` or
            ``postgresql+psycopg://``, with libpq's parameters; ``embedded://`` or
            ``embedded:///folder`` for the embedded server. None takes ``settings.database_url``,
            and the embedded server if that is empty too.
        engine: An engine of yours to use instead. ``close`` leaves it open.
        schema: PostgreSQL schema of the tables, at most 63 bytes. None takes the settings'.
        openai_api_key: Key for OpenAI's embeddings, extra ``openai``; short for an embedder.
        embedder: What makes the vectors. None takes the one that the settings name.
        settings: All else. None reads the ``LLMEMORY_`` environment variables.

    Raises:
        ConfigurationError: The arguments contradict each other, or no embedder is installed.

    Example:
        >>> async with AsyncMemory("postgresql://localhost/app") as memory:
        ...     await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        ...     hits = await memory.search("acme", "How much holiday do I get?")
    """

    def __init__(
        self,
        connection_string: str | None = None,
        *,
        openai_api_key: str | None = None,
        engine: AsyncEngine | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
    ) -> None:
        if settings is None:
            settings = Settings.from_env()
        elif not isinstance(settings, Settings):
            raise ConfigurationError(
                f"settings must be a Settings object, not {type(settings).__name__}."
            )
        if connection_string is not None:
            if not isinstance(connection_string, str) or not connection_string.strip():
                raise ConfigurationError(
                    "connection_string must be text such as postgresql://host/database; leave it "
                    "out, or pass embedded://, for the embedded server."
                )
            if engine is not None:
                raise ConfigurationError("Give a connection string or an engine, not both.")
            settings = settings.model_copy(update={"database_url": SecretStr(connection_string)})
        if openai_api_key is not None:
            if embedder is not None:
                raise ConfigurationError("Give an OpenAI key or an embedder, not both.")
            key = SecretStr(openai_api_key)
            settings = settings.model_copy(update={"openai_api_key": key, "embedder": "openai"})
        self.settings = settings
        self.schema = checked_schema(settings.schema_name if schema is None else schema)
        self.embedder = (
            embedding.from_settings(settings) if embedder is None else checked_embedder(embedder)
        )
        self._owns_embedder = embedder is None
        self._database = Database(settings, engine=engine)
        self._tables = tables_for(self.schema)
        self._store = Store(self._tables)
        self._space: Space | None = None
        self._indexes = VectorIndexes(self._tables, settings.hnsw_refresh_s)
        self._opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    @classmethod
    def from_engine(
        cls,
        engine: AsyncEngine,
        *,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Return a memory on an engine of yours; several may share it, each with its schema.

        The engine stays yours: ``close`` does not dispose of it.
        """
        return cls(engine=engine, schema=schema, embedder=embedder, settings=settings)

    async def initialize(self) -> None:
        """Connect, bring the schema up to date and check it. Calling it again does nothing.

        Any number of processes may call it at once: one migrates, the others wait. With
        ``Settings.migrate=False`` it only checks.

        Raises:
            SchemaError: The schema is missing, older or newer than the library, or pgvector is
                absent; the message holds the command to run.
            EmbedderMismatchError: The stored vectors come from another model.
            ConfigurationError: The login was refused or the database does not exist.
            StorageUnavailable: The server cannot be reached.
            ClosedError: ``close`` was called.
        """
        await self._open()

    async def close(self) -> None:
        """Close the connections that this memory opened. Later calls raise ClosedError."""
        await self._database.close()
        close_embedder = getattr(self.embedder, "aclose", None)
        if self._owns_embedder and close_embedder is not None:
            await close_embedder()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def add_document(
        self,
        owner_id: Identifier,
        document_name: str | None,
        content: str,
        *,
        document_type: DocumentType | str = DocumentType.GENERAL,
        id_at_origin: Identifier | None = None,
        external_id: Identifier | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        document_date: Moment | None = None,
        language: str | None = None,
        embed: Embed | None = None,
        session: Session | None = None,
    ) -> DocumentAddResult:
        """Split, embed and store a document, in one transaction.

        Args:
            owner_id: Whose it is: a tenant, workspace or user. At most 512 bytes.
            document_name: Its name or title, at most 1,000 characters. None or blank is
                "(no subject)" for an EMAIL and refused for other types.
            content: Its text, at most 10 MB in UTF-8.
            document_type: What kind of text it is. MARKDOWN is split at headings.
            id_at_origin: Who or where it came from; many documents may share it.
            external_id: Your key for it, unique per owner. Adding the same key again replaces the
                document, or leaves it alone if the content is the same. Without one, every call
                adds a document.
            additional_metadata: JSON values to filter by; datetime, UUID and Decimal become text.
            document_date: The date it carries; a naive one is UTC.
            language: PostgreSQL text search configuration, such as "german".
            embed: "now", or "later" to store it searchable by words and leave the vectors to
                ``process_pending_embeddings``. Default: "now", and "later" with `session`, whose
                transaction would otherwise stay open while the embedder works.
            session: Your AsyncSession or AsyncConnection to write in; you commit.

        Returns:
            What was done, with the document's id.

        Raises:
            ValidationError: An argument may not be stored.
            EmbeddingError: The embedder failed.
            ConflictError: Concurrent changes of the same external_id won again and again.
            StorageError: The database failed. In every case nothing was stored.
        """
        document = {
            "owner_id": owner_id,
            "document_name": document_name,
            "content": content,
            "document_type": document_type,
            "id_at_origin": id_at_origin,
            "external_id": external_id,
            "additional_metadata": additional_metadata,
            "document_date": document_date,
            "language": language,
        }
        writer = await self._writer()
        checked = await writer.check(document)
        (result,) = await writer.write([checked], embed=_embed(embed, session), session=session)
        return result

    async def add_documents(
        self,
        documents: Documents,
        *,
        embed: Embed | None = None,
        on_progress: Callable[[Progress], Any] | None = None,
        session: Session | None = None,
    ) -> list[DocumentAddResult]:
        """Store many documents, in batches that each are one transaction.

        Args:
            documents: NewDocument models, or mappings with the arguments of ``add_document``,
                ``owner_id`` included, from any iterable or async iterable. Memory stays bounded.
            embed: As in ``add_document``.
            on_progress: Called after each batch.
            session: Your transaction to write all of them in; you commit.

        Returns:
            One result per document, in order.

        Raises:
            ValidationError: A document may not be stored; ``index`` tells which. Of a list
                nothing is stored then; of an iterator, batches before it are.
            EmbeddingError: The embedder failed; batches before are stored.
            StorageError: The database failed; batches before are stored.
        """
        writer = await self._writer()
        results = await writer.stream(
            documents, embed=_embed(embed, session), on_progress=on_progress, session=session
        )
        if session is None:
            await analyze_after_bulk(self._database, self._tables, results)
        return results

    async def add_file(
        self,
        owner_id: Identifier,
        path: str | PathLike[str],
        *,
        document_name: str | None = None,
        document_type: DocumentType | str | None = None,
        id_at_origin: Identifier | None = None,
        external_id: Identifier | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        document_date: Moment | None = None,
        language: str | None = None,
        embed: Embed | None = None,
        session: Session | None = None,
    ) -> DocumentAddResult:
        """Store a file. Adding the same path again replaces it.

        Text and Markdown must be in UTF-8. PDF, DOCX, PPTX and HTML are converted by the extra
        ``files``. An e-mail (``.eml``) brings its date, and as metadata ``from``, ``to``, ``cc``,
        ``date``, ``subject``, ``message_id`` and ``attachments``; HTML in it needs the extra.

        Args:
            owner_id: Whose it is.
            path: The file.
            document_name: None takes the file's name, or an e-mail's subject.
            document_type: None tells it by the file's ending.
            id_at_origin: As in ``add_document``; None takes an e-mail's sender.
            external_id: None takes the absolute path.
            additional_metadata: As in ``add_document``; added to an e-mail's.
            document_date: As in ``add_document``; None takes an e-mail's.
            language: As in ``add_document``.
            embed: As in ``add_document``.
            session: As in ``add_document``.

        Raises:
            ValidationError: The file is missing, too large, broken, no UTF-8 text, or of a kind
                that cannot be converted, or not without the extra ``files``.
        """
        found = await files.read_in_thread(path, self.settings)
        return await self.add_document(
            owner_id,
            (found.document_name or files.name_of(path))
            if document_name is None
            else document_name,
            found.content,
            document_type=found.document_type if document_type is None else document_type,
            id_at_origin=found.id_at_origin if id_at_origin is None else id_at_origin,
            external_id=(
                files.external_id_of(path, self.settings) if external_id is None else external_id
            ),
            additional_metadata=found.metadata_with(additional_metadata),
            document_date=found.document_date if document_date is None else document_date,
            language=language,
            embed=embed,
            session=session,
        )

    async def search(
        self,
        owner_id: Identifier,
        query_text: str,
        *,
        search_type: SearchType | str = SearchType.HYBRID,
        limit: int = 10,
        offset: int = 0,
        metadata_filter: Mapping[str, Any] | None = None,
        document_type: DocumentType | str | None = None,
        id_at_origin: Identifier | None = None,
        date_from: Moment | None = None,
        date_to: Moment | None = None,
        alpha: float | None = None,
        language: str | None = None,
        min_score: float | None = None,
        context_window: int = 0,
        highlight: bool = False,
        session: Session | None = None,
    ) -> list[SearchResult]:
        """Return the owner's passages that fit `query_text` best, best first.

        VECTOR compares meanings by cosine similarity. TEXT ranks the passages that hold any of
        the words by BM25. HYBRID, the default, adds both, each scaled to 0..1, weighted by
        `alpha`. Sources: Robertson and Zaragoza 2009, BM25; Bruch et al. 2023, fusion.

        Args:
            owner_id: Whose documents to search.
            query_text: The question, at most 10,000 characters.
            search_type: By meaning, by words, or both.
            limit: Hits wanted, 1 to 1,000. Fewer come back only if fewer match.
            offset: Hits to skip.
            metadata_filter: Keys and the values they must equal, None meaning null or missing; or
                operators, such as ``{"year": {"$gte": 2024}}``.
            document_type: Only documents of this type.
            id_at_origin: Only documents of this origin.
            date_from: Only documents dated then or later; those without a date are left out.
            date_to: Only documents dated then or earlier; a date without time includes the day.
            alpha: Weight of meaning against words in a hybrid search, 0 to 1: 0 is TEXT, 1 is
                VECTOR. None takes the settings', else the embedder's.
            language: Language of the query. None analyses it in every language that the owner's
                documents have.
            min_score: Only hits with at least this score, 0 to 1. It changes no order or score.
            context_window: Chunks on each side whose text comes along, as ``context``, 0 to 50.
            highlight: Whether ``highlight`` of each hit is made: its text as safe HTML, the
                query's words in ``<mark>``.
            session: Your transaction to read in, with what it has not committed.

        Returns:
            At most `limit` hits, scores from 0 to 1.

        Raises:
            ValidationError: An argument is out of range.
            EmbeddingError: The embedder failed.
            StorageError: The database failed.
        """
        request = checked_search(
            owner_id=owner_id,
            query_text=query_text,
            search_type=search_type,
            limit=limit,
            offset=offset,
            alpha=self._alpha() if alpha is None else alpha,
            language=language,
            filters=self._filters(metadata_filter, document_type, id_at_origin, date_from, date_to),
            min_score=min_score,
            context_window=context_window,
            highlight=highlight,
            settings=self.settings,
        )
        space = await self._open()
        query = None
        if request.search_type is not SearchType.TEXT:
            (query,) = await embed_checked(
                self.embedder, [request.query.text], purpose="query", batch_size=1
            )
        async with self._database.connect(session) as connection:
            index = None
            if query is not None:
                index = await self._indexes.find(connection, request.owner_id, space.space_id)
            return await run_search(
                connection,
                self._tables,
                request,
                space=space,
                embedding=query,
                index=index,
                settings=self.settings,
            )

    async def search_with_documents(
        self,
        owner_id: Identifier,
        query_text: str,
        *,
        search_type: SearchType | str = SearchType.HYBRID,
        limit: int = 10,
        offset: int = 0,
        metadata_filter: Mapping[str, Any] | None = None,
        document_type: DocumentType | str | None = None,
        id_at_origin: Identifier | None = None,
        date_from: Moment | None = None,
        date_to: Moment | None = None,
        alpha: float | None = None,
        language: str | None = None,
        min_score: float | None = None,
        context_window: int = 0,
        highlight: bool = False,
        session: Session | None = None,
    ) -> SearchResultWithDocuments:
        """Search as ``search`` does; return the hits, and the same hits grouped by document.

        Returns:
            ``results`` as ``search`` returns them, and ``documents``, the one with the best hit
            first, each with its hits and with their text in ``passages`` that do not overlap.

        Raises:
            ValidationError: An argument is out of range.
            EmbeddingError: The embedder failed.
            StorageError: The database failed.
        """
        return grouped(
            await self.search(
                owner_id,
                query_text,
                search_type=search_type,
                limit=limit,
                offset=offset,
                metadata_filter=metadata_filter,
                document_type=document_type,
                id_at_origin=id_at_origin,
                date_from=date_from,
                date_to=date_to,
                alpha=alpha,
                language=language,
                min_score=min_score,
                context_window=context_window,
                highlight=highlight,
                session=session,
            )
        )

    async def list_documents(
        self,
        owner_id: Identifier,
        *,
        document_type: DocumentType | str | None = None,
        id_at_origin: Identifier | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
        date_from: Moment | None = None,
        date_to: Moment | None = None,
        offset: int = 0,
        limit: int = 20,
        session: Session | None = None,
    ) -> DocumentListResult:
        """Return one page of an owner's documents, newest first, without their contents.

        Args:
            owner_id: Whose documents.
            document_type: As in ``search``, like the other filters.
            id_at_origin: As in ``search``.
            metadata_filter: As in ``search``.
            date_from: As in ``search``.
            date_to: As in ``search``.
            offset: Documents to skip.
            limit: Documents on the page, 1 to 1,000.
            session: Your transaction to read in.

        Raises:
            ValidationError: An argument is out of range.
        """
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        page = checked_page(limit, offset, self.settings)
        filters = self._filters(metadata_filter, document_type, id_at_origin, date_from, date_to)
        await self._open()
        async with self._database.connect(session) as connection:
            return await self._store.list(connection, owner, filters, limit=page[0], offset=page[1])

    async def get_document(
        self, owner_id: Identifier, document_id: str | UUID, *, session: Session | None = None
    ) -> Document:
        """Return a document with its content.

        Raises:
            DocumentNotFoundError: The owner has no such document.
        """
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        wanted = document_uuid(document_id)
        await self._open()
        async with self._database.connect(session) as connection:
            document = await self._store.get(connection, owner, wanted)
        if document is None:
            raise _not_found(wanted)
        return document

    async def update_document(
        self,
        owner_id: Identifier,
        document_id: str | UUID,
        *,
        document_name: str | None = None,
        content: str | None = None,
        document_type: DocumentType | str | None = None,
        id_at_origin: Identifier | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        document_date: Moment | None = None,
        language: str | None = None,
        embed: Embed | None = None,
        session: Session | None = None,
    ) -> DocumentAddResult:
        """Change what is given of a document; what is None stays as it is.

        New content is split again, only changed passages are embedded, and searches see the old
        chunks or the new ones, never both. Metadata is replaced as a whole: ``{}`` empties it.

        Raises:
            DocumentNotFoundError: The owner has no such document.
            ValidationError: A value may not be stored.
        """
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        given = {
            "document_name": document_name,
            "content": content,
            "document_type": document_type,
            "id_at_origin": id_at_origin,
            "additional_metadata": additional_metadata,
            "document_date": document_date,
            "language": language,
        }
        return await (await self._writer()).update(
            owner,
            document_uuid(document_id),
            {name: value for name, value in given.items() if value is not None},
            embed=_embed(embed, session),
            session=session,
        )

    async def delete_document(
        self, owner_id: Identifier, document_id: str | UUID, *, session: Session | None = None
    ) -> None:
        """Delete a document with its chunks, vectors and jobs.

        Raises:
            DocumentNotFoundError: The owner has no such document.
        """
        wanted = document_uuid(document_id)
        if not await self.delete_documents(owner_id, [wanted], session=session):
            raise _not_found(wanted)

    async def delete_documents(
        self,
        owner_id: Identifier,
        document_ids: Sequence[str | UUID] | None = None,
        *,
        external_ids: Sequence[Identifier] | None = None,
        document_type: DocumentType | str | None = None,
        id_at_origin: Identifier | None = None,
        metadata_filter: Mapping[str, Any] | None = None,
        date_from: Moment | None = None,
        date_to: Moment | None = None,
        session: Session | None = None,
    ) -> int:
        """Delete the documents that match everything given, some hundred a transaction.

        Args:
            owner_id: Whose documents.
            document_ids: Only these; ids that the owner does not have are passed over.
            external_ids: Only those with these keys.
            document_type: As in ``search``, like the other filters.
            id_at_origin: As in ``search``.
            metadata_filter: As in ``search``.
            date_from: As in ``search``.
            date_to: As in ``search``.
            session: Your transaction to delete in; you commit.

        Returns:
            How many were deleted.

        Raises:
            ValidationError: Nothing was given to choose by; ``delete_owner`` deletes all.
        """
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        filters = self._filters(metadata_filter, document_type, id_at_origin, date_from, date_to)
        ids = checked_document_ids(document_ids)
        keys = checked_external_ids(external_ids, self.settings)
        if ids is None and keys is None and filters.is_empty():
            raise ValidationError("Nothing to choose by; delete_owner deletes all documents.")
        return await self._delete(owner, filters, ids, keys, session)

    async def delete_owner(self, owner_id: Identifier, *, session: Session | None = None) -> int:
        """Delete everything an owner has, some hundred documents a transaction.

        Stopped at any point and called again, it goes on.

        Returns:
            How many documents were deleted.
        """
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        deleted = await self._delete(owner, Filters(), None, None, session)
        async with self._database.transaction(session) as connection:
            await self._store.delete_statistics(connection, owner)
        return deleted

    async def get_statistics(
        self, owner_id: Identifier, *, session: Session | None = None
    ) -> OwnerStatistics:
        """Return how much an owner has stored; zeros for one who has nothing."""
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        space = await self._open()
        async with self._database.connect(session) as connection:
            return await self._store.statistics(connection, owner, space.space_id)

    async def process_pending_embeddings(
        self, owner_id: Identifier | None = None, *, limit: int | None = None
    ) -> int:
        """Make the vectors that adding with ``embed="later"`` has left, until none are due.

        Any number of processes may call it at once; each document is worked on by one of them.

        Args:
            owner_id: Only this owner's documents; None takes all owners in turn.
            limit: Documents to finish at most, 1 or more; None means all.

        Returns:
            How many documents were finished.

        Raises:
            EmbeddingError: The embedder failed. The documents are tried again later, and left as
                failed after ``job_attempts``.
        """
        owner = None
        if owner_id is not None:
            owner = checked_identifier(owner_id, "owner_id", self.settings)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValidationError("limit must be 1 or more, or None.", field="limit")
        space = await self._open()
        queue = Queue(self._database, self._tables, self.embedder, space, self.settings)
        return await queue.drain(owner, limit)

    async def maintain(
        self, on_progress: Callable[[MaintenanceProgress], Any] | None = None
    ) -> MaintenanceResult:
        """Do the upkeep that is due: HNSW indexes, counts of words, planner statistics.

        Searches are right without it. Call it after bulk loads and now and then, such as once a
        night. Reading and writing go on meanwhile. Of many calls at once, one works and the
        others return. Stopped at any point and called again, it goes on.

        Args:
            on_progress: Called at each step, and while an index is built.

        Raises:
            ConfigurationError: The role does not own the tables.
            StorageError: The database failed; what was done before stays.
        """
        await self._open()
        upkeep = Maintenance(self._database, self._tables, self.settings, on_progress)
        try:
            return await upkeep.run()
        finally:
            self._indexes.forget()

    async def health(self) -> Health:
        """Return whether the database answers and the schema fits; problems do not raise.

        Raises:
            ClosedError: ``close`` was called.
        """
        return await check_health(self._database, self.schema, self.embedder)

    async def _open(self) -> Space:
        self._database.check_open()
        if self._space is not None:
            return self._space
        lock = self._opening.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with lock:
            if self._space is None:
                await self._migrate()
                async with self._database.connect() as connection:
                    self._space = await open_space(
                        connection,
                        self._tables,
                        provider=provider_of(self.embedder),
                        model=self.embedder.model,
                        dimensions=self.embedder.dimensions,
                    )
                    await self._indexes.refresh(connection)
            return self._space

    async def _migrate(self) -> None:
        async with self._database.connect() as connection:
            try:
                await connection.run_sync(migrate.check, self.schema)
            except SchemaTooNew:
                raise
            except SchemaError:
                if not self.settings.migrate:
                    raise
            else:
                return
        async with migrate.ready(), self._database.transaction() as connection:
            await connection.run_sync(migrate.upgrade, self.schema)

    async def _writer(self) -> Writer:
        space = await self._open()
        return Writer(self._database, self._store, self.embedder, space, self.settings)

    async def _delete(
        self,
        owner_id: str,
        filters: Filters,
        document_ids: Sequence[UUID] | None,
        external_ids: Sequence[str] | None,
        session: Session | None,
    ) -> int:
        await self._open()
        deleted = 0
        while True:
            async with self._database.transaction(session) as connection:
                count = await self._store.delete(
                    connection,
                    owner_id,
                    filters,
                    limit=DELETE_BATCH,
                    document_ids=document_ids,
                    external_ids=external_ids,
                )
            deleted += count
            if count < DELETE_BATCH:
                return deleted

    def _filters(
        self,
        metadata_filter: Mapping[str, Any] | None,
        document_type: DocumentType | str | None,
        id_at_origin: Identifier | None,
        date_from: Moment | None,
        date_to: Moment | None,
    ) -> Filters:
        return checked_filters(
            self.settings,
            metadata_filter=metadata_filter,
            document_type=document_type,
            id_at_origin=id_at_origin,
            date_from=date_from,
            date_to=date_to,
        )

    def _alpha(self) -> float:
        if self.settings.alpha is not None:
            return self.settings.alpha
        return float(getattr(self.embedder, "alpha", DEFAULT_ALPHA))


def _embed(embed: Embed | None, session: Session | None) -> Embed:
    if embed is None:
        return "now" if session is None else "later"
    if embed not in ("now", "later"):
        raise ValidationError('embed must be "now" or "later".', field="embed")
    return embed


def _not_found(document_id: UUID) -> DocumentNotFoundError:
    return DocumentNotFoundError(
        "This owner has no document of this id; see list_documents.", document_id=str(document_id)
    )
