"""Reading and deleting documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Delete

from llmemory.core.lifecycle import Lifecycle
from llmemory.database.engines import Session
from llmemory.errors import DocumentNotFoundError, ValidationError
from llmemory.types import (
    Document,
    DocumentListResult,
    DocumentType,
    Identifier,
    Moment,
    OwnerStatistics,
)
from llmemory.validation.filters import Filters
from llmemory.validation.searches import checked_filters, checked_page
from llmemory.validation.values import (
    checked_document_ids,
    checked_external_ids,
    checked_identifier,
    document_uuid,
)

DELETE_BATCH = 500


class StoredDocuments(Lifecycle):
    """Reads and deletes what is stored."""

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
        filters = checked_filters(
            self.settings,
            metadata_filter=metadata_filter,
            document_type=document_type,
            id_at_origin=id_at_origin,
            date_from=date_from,
            date_to=date_to,
        )
        await self._open()
        async with self._database.connect(session, owner_id=owner) as connection:
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
        async with self._database.connect(session, owner_id=owner) as connection:
            document = await self._store.get(connection, owner, wanted)
        if document is None:
            raise _not_found(wanted)
        return document

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
        chosen = self._chosen(
            owner_id,
            document_ids,
            external_ids,
            document_type=document_type,
            id_at_origin=id_at_origin,
            metadata_filter=metadata_filter,
            date_from=date_from,
            date_to=date_to,
        )
        return await self._delete(*chosen, session)

    async def delete_statement(
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
    ) -> Delete:
        """Return a DELETE of what ``delete_documents`` would delete, for you to execute.

        Any session or connection of the same database will do, sync or async. Chunks, vectors and
        jobs go with their documents. It takes all of them at once.

        Raises:
            ValidationError: Nothing was given to choose by, or an argument is out of range.
        """
        chosen = self._chosen(
            owner_id,
            document_ids,
            external_ids,
            document_type=document_type,
            id_at_origin=id_at_origin,
            metadata_filter=metadata_filter,
            date_from=date_from,
            date_to=date_to,
        )
        await self._open()
        return self._store.deletion(*chosen)

    async def delete_owner(self, owner_id: Identifier, *, session: Session | None = None) -> int:
        """Delete everything an owner has, some hundred documents a transaction.

        Stopped at any point and called again, it goes on.

        Returns:
            How many documents were deleted.
        """
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        deleted = await self._delete(owner, Filters(), None, None, session)
        async with self._database.transaction(session, owner_id=owner) as connection:
            await self._store.delete_statistics(connection, owner)
        return deleted

    async def get_statistics(
        self, owner_id: Identifier, *, session: Session | None = None
    ) -> OwnerStatistics:
        """Return how much an owner has stored; zeros for one who has nothing."""
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        _, space = await self._open()
        async with self._database.connect(session, owner_id=owner) as connection:
            return await self._store.statistics(connection, owner, space.space_id)

    def _chosen(
        self,
        owner_id: Identifier,
        document_ids: Sequence[str | UUID] | None,
        external_ids: Sequence[Identifier] | None,
        **filters: Any,
    ) -> tuple[str, Filters, Sequence[UUID] | None, Sequence[str] | None]:
        """Return by what to choose the documents to delete, checked."""
        owner = checked_identifier(owner_id, "owner_id", self.settings)
        checked = checked_filters(self.settings, **filters)
        ids = checked_document_ids(document_ids)
        keys = checked_external_ids(external_ids, self.settings)
        if ids is None and keys is None and checked.is_empty():
            raise ValidationError("Nothing to choose by; delete_owner deletes all documents.")
        return owner, checked, ids, keys

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
            async with self._database.transaction(session, owner_id=owner_id) as connection:
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


def _not_found(document_id: UUID) -> DocumentNotFoundError:
    return DocumentNotFoundError(
        "This owner has no document of this id; see list_documents.", document_id=str(document_id)
    )
