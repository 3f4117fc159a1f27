"""Adding and changing documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any
from uuid import UUID

import llmemory.reembedding.feeding  # noqa: F401 - it listens
from llmemory import models
from llmemory.core.lifecycle import Lifecycle
from llmemory.database.engines import Session
from llmemory.documents.bulk import Bulk, Documents, OnError
from llmemory.documents.planner import Embed
from llmemory.documents.writer import Writer
from llmemory.errors import ValidationError
from llmemory.files import reading as files
from llmemory.maintenance import analyze_after_bulk
from llmemory.types import DocumentAddResult, DocumentType, Identifier, Moment, Progress
from llmemory.validation.values import checked_identifier, document_uuid


class Adding(Lifecycle):
    """Adds and changes documents."""

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
        checked = await writer.planner.check(document)
        (result,) = await writer.write([checked], embed=_embed(embed, session), session=session)
        return result

    async def build_document(
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
        document_id: str | UUID | None = None,
        embed: Embed = "now",
        session: Session | None = None,
    ) -> models.Document:
        """Return a document for you to add to a session of your own, sync or async.

        It has its chunks and their vectors, or a job, and nothing is written before your session
        flushes: then it is what ``add_document`` would have stored, in your transaction. Where
        its `external_id` is stored already, or `document_id` is given, it is that document with
        the changes, which the flush writes; unchanged, it writes nothing. Embedding happens here,
        so build before your transaction begins.

        Args:
            owner_id: As in ``add_document``.
            document_name: As in ``add_document``.
            content: As in ``add_document``.
            document_type: As in ``add_document``.
            id_at_origin: As in ``add_document``.
            external_id: As in ``add_document``.
            additional_metadata: As in ``add_document``.
            document_date: As in ``add_document``.
            language: As in ``add_document``.
            document_id: The stored document that this one replaces; it keeps its `external_id`
                unless you give one.
            embed: "now", or "later" to attach a job for ``process_pending_embeddings``.
            session: Your AsyncSession or AsyncConnection, to look there for what is stored.

        Returns:
            ``session.add(document)``, or ``session.merge(document)`` if your session has loaded
            the same document before. In another schema than the models' begin the transaction
            with ``session.connection(execution_options=memory.execution_options)``. The flush
            raises ``StaleDataError`` or ``IntegrityError`` where somebody changed the document
            after it was built: roll back and build it again. Where it was deleted, by your
            transaction as well, the flush raises ``DocumentNotFoundError``.

        Raises:
            ValidationError: An argument may not be stored.
            DocumentNotFoundError: The owner has no document of this `document_id`.
            EmbeddingError: The embedder failed.
        """
        writer = await self._writer()
        return await writer.build(
            {
                "owner_id": owner_id,
                "document_name": document_name,
                "content": content,
                "document_type": document_type,
                "id_at_origin": id_at_origin,
                "external_id": external_id,
                "additional_metadata": additional_metadata,
                "document_date": document_date,
                "language": language,
            },
            embed=_embed(embed, session),
            session=session,
            document_id=None if document_id is None else document_uuid(document_id),
        )

    async def add_documents(
        self,
        documents: Documents,
        *,
        embed: Embed | None = None,
        on_progress: Callable[[Progress], Any] | None = None,
        on_error: OnError = "raise",
        session: Session | None = None,
    ) -> list[DocumentAddResult]:
        """Store many documents, in batches that each are one transaction.

        While two batches are written, the next is embedded and the one after it split. Memory
        stays bounded, but for the results. With ``external_id``, a call that was broken off can
        simply be made again: what it has stored is found unchanged and not embedded again.

        Args:
            documents: NewDocument models, or mappings with the arguments of ``add_document``,
                ``owner_id`` included, from any iterable or async iterable.
            embed: As in ``add_document``.
            on_progress: Called after each batch.
            on_error: "raise" ends the call at the first document that cannot be added; "collect"
                goes on, and that one's result has the status "failed" and the ``error``. This is
                for documents: a database or a provider that fails ends the call all the same, and
                so does an embedder that refuses all of several documents before it took any.
            session: Your transaction to write all of them in; you commit.

        Returns:
            One result per document, in order.

        Raises:
            ValidationError: A document may not be stored; ``index`` tells which. Of a list
                nothing is stored then; of an iterator, batches before it may be.
            EmbeddingError: The embedder failed; batches before may be stored, each whole.
            StorageError: The database failed; other batches may be stored, each whole.
        """
        if on_error not in ("raise", "collect"):
            raise ValidationError('on_error must be "raise" or "collect".', field="on_error")
        bulk = Bulk(
            await self._writer(),
            embed=_embed(embed, session),
            on_error=on_error,
            on_progress=on_progress,
            session=session,
        )
        results = await bulk.run(documents)
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

    async def _writer(self) -> Writer:
        return Writer(
            self._database, self._store, *await self._open(), self._contexts, self.settings
        )


def _embed(embed: Embed | None, session: Session | None) -> Embed:
    if embed is None:
        return "now" if session is None else "later"
    if embed not in ("now", "later"):
        raise ValidationError('embed must be "now" or "later".', field="embed")
    return embed
