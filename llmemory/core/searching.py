"""Searching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select

import llmemory.search.statement_settings  # noqa: F401 - it listens
from llmemory.core.lifecycle import Lifecycle
from llmemory.database.engines import Database, Session
from llmemory.embedding.base import Embedder, alpha_for, alpha_of
from llmemory.search.ranking import grouped
from llmemory.search.retrieval import run_search, search_select
from llmemory.spaces import check_space
from llmemory.types import (
    DocumentType,
    HalfVectors,
    Identifier,
    Moment,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)
from llmemory.validation.searches import SearchRequest, checked_filters, checked_search, weighted


class Searching(Lifecycle):
    """Searches an owner's documents."""

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
        from_primary: bool = False,
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
            from_primary: Whether to see all that has been committed, where there is a replica,
                which lags behind: it is not asked then.
            session: Your transaction to read in, with what it has not committed.

        Returns:
            At most `limit` hits, scores from 0 to 1.

        Raises:
            ValidationError: An argument is out of range.
            EmbeddingError: The embedder failed.
            StorageError: The database failed.
        """
        request = self._request(
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
        )
        embedder, space = await self._open()
        request, query = await self._embedded(request, embedder)

        async def run(database: Database) -> list[SearchResult]:
            async with database.connect(session) as connection:
                return await run_search(
                    connection,
                    self._tables,
                    request,
                    space=space,
                    embedding=query,
                    indexes=self._indexes,
                    settings=self.settings,
                    local=database.owner_settings(request.owner_id),
                    past_sqlalchemy=session is None and not database.is_given,
                )

        if self._replica is None or from_primary or session is not None:
            return await run(self._database)
        return await self._replica.ask_first(run, otherwise=self._database)

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
        from_primary: bool = False,
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
                from_primary=from_primary,
                session=session,
            )
        )

    async def search_statement(
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
    ) -> Select[*tuple[Any, ...]]:
        """Return what ``search`` would run, as a Select to execute or to build upon.

        Any session or connection of the same database executes it, sync or async, by itself or as
        a part of another statement: joined with your tables, as a subquery or CTE, in a UNION. The
        query is embedded here and now. What you add comes after `limit`: a condition of yours
        takes hits away, so ask for more of them, or filter by `metadata_filter`. Once the vectors
        of this embedder are dropped, a Select made before finds nothing.

        Returns:
            A Select of the hits' ``document_id``, ``chunk_id``, ``score``, ``rank`` (1 is the
            best), ``owner_id``, ``similarity``, ``lexical_score``, ``vector_rank``,
            ``text_rank``, ``content``, ``headings``, ``position``, ``start_offset``,
            ``end_offset``, ``document_name``, ``document_type``, ``metadata``, ``id_at_origin``,
            ``external_id`` and ``document_date``, and with `context_window` ``context``,
            ``context_start`` and ``context_end``. By itself its rows come best first; once you
            have joined it, order by ``rank``.

        Raises:
            ValidationError: An argument is out of range.
            EmbeddingError: The embedder failed.
            StorageError: The database failed.
        """
        request = self._request(
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
            highlight=False,
        )
        embedder, space = await self._open()
        request, query = await self._embedded(request, embedder)
        index = None
        if query is not None:
            async with self._database.connect() as connection:
                await check_space(connection, self._tables, space)
                index = await self._indexes.find(connection, request.owner_id, space.space_id)
        return search_select(
            self._tables,
            request,
            space=space,
            embedding=query,
            index=index,
            filters=self._indexes.filters,
            settings=self.settings,
        )

    def _request(
        self,
        owner_id: Identifier,
        query_text: str,
        *,
        metadata_filter: Mapping[str, Any] | None,
        document_type: DocumentType | str | None,
        id_at_origin: Identifier | None,
        date_from: Moment | None,
        date_to: Moment | None,
        alpha: float | None,
        **others: Any,
    ) -> SearchRequest:
        return checked_search(
            owner_id=owner_id,
            query_text=query_text,
            alpha=self._alpha() if alpha is None else alpha,
            filters=checked_filters(
                self.settings,
                metadata_filter=metadata_filter,
                document_type=document_type,
                id_at_origin=id_at_origin,
                date_from=date_from,
                date_to=date_to,
            ),
            settings=self.settings,
            **others,
        )

    async def _embedded(
        self, request: SearchRequest, embedder: Embedder
    ) -> tuple[SearchRequest, HalfVectors | None]:
        """Return a request with its vector, if it needs one, and the weight of that."""
        if request.search_type is SearchType.TEXT:
            return request, None
        vector = await self._queries.embed(embedder, request.query.text)
        if request.search_type is SearchType.HYBRID and request.alpha is None:
            request = weighted(request, alpha_for(embedder, request.query.text))
        return request, None if request.search_type is SearchType.TEXT else vector

    def _alpha(self) -> float | None:
        if self.settings.alpha is not None:
            return self.settings.alpha
        return alpha_of(self.embedder)
