"""Writing any number of documents: splitting, embedding and writing overlap."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any, Literal, TypeAlias

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from llmemory.concurrency.tasks import task_group
from llmemory.database.engines import Session
from llmemory.documents.planner import Embed, Planned, Prepared
from llmemory.documents.writer import Writer
from llmemory.errors import (
    DimensionMismatch,
    EmbeddingError,
    LLMemoryError,
    ProviderRejected,
    ProviderUnavailable,
    StorageError,
    ValidationError,
)
from llmemory.types import DocumentAddResult, NewDocument, Progress
from llmemory.validation.documents import CheckedDocument

__all__ = ["Bulk", "Documents", "OnError"]

Documents: TypeAlias = (
    Iterable[NewDocument | Mapping[str, Any]] | AsyncIterable[NewDocument | Mapping[str, Any]]
)
OnError: TypeAlias = Literal["raise", "collect"]
Key: TypeAlias = tuple[str, str]

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1_000_000
# Taking words apart keeps one process of the server busy: two of them write nearly twice as fast.
WRITERS = 2
ITEMS_A_TURN = 64
TURN_S = 0.05
# What a provider says of itself or of the account, not of a text.
_REFUSALS_OF_ALL = frozenset({401, 402, 403, 404, 405, 407, 429})
# Data that cannot be stored, and limits of the server that it exceeds.
_REFUSALS_OF_DATA = ("22", "54")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Documents of one transaction, no two with the same key, and their places in the call."""

    documents: list[CheckedDocument]
    places: list[int]

    @property
    def keys(self) -> set[Key]:
        return {key for key in map(_key, self.documents) if key is not None}

    def halves(self) -> tuple[_Batch, _Batch]:
        middle = len(self.places) // 2
        return (
            _Batch(self.documents[:middle], self.places[:middle]),
            _Batch(self.documents[middle:], self.places[middle:]),
        )


class Bulk:
    """One call that writes many documents."""

    def __init__(
        self,
        writer: Writer,
        *,
        embed: Embed,
        on_error: OnError = "raise",
        on_progress: Callable[[Progress], Any] | None = None,
        session: Session | None = None,
    ) -> None:
        self._writer = writer
        self._embed: Embed = embed
        self._collects = on_error == "collect"
        self._on_progress = on_progress
        self._session = session
        self._results: list[DocumentAddResult | None] = []
        self._total: int | None = None
        self._done = self._failed = self._chunks = 0
        self._has_embedded = False
        self._under_way: set[Key] = set()
        self._finished = anyio.Event()

    async def run(self, documents: Documents) -> list[DocumentAddResult]:
        """Write `documents`; return one result each, in order.

        Raises:
            ValidationError: A document may not be stored. Of a sequence nothing is stored then;
                of an iterator what came before it may be.
        """
        if isinstance(documents, Sequence) and not isinstance(documents, str):
            self._total = len(documents)
            if not self._collects:
                await anyio.to_thread.run_sync(self._check_all, documents)
        if self._session is None:
            await self._run_at_once(documents)
        else:
            # One transaction is one connection: its statements cannot overlap.
            async with aclosing(self._batches(documents)) as batches:
                async for batch in batches:
                    for part, prepared in await self._embedded(batch, await self._plan(batch)):
                        await self._write(part, prepared)
        return [result for result in self._results if result is not None]

    def _check_all(self, documents: Sequence[NewDocument | Mapping[str, Any]]) -> None:
        for index, document in enumerate(documents):
            self._writer.planner.check_now(document, index)

    async def _run_at_once(self, documents: Documents) -> None:
        """Run the stages at once; what each holds is bounded, and so is memory."""
        to_embed, planned = anyio.create_memory_object_stream[tuple[_Batch, Planned]](0)
        to_write, prepared = anyio.create_memory_object_stream[tuple[_Batch, Prepared]](0)
        async with task_group() as stages:
            stages.start_soon(self._plan_all, documents, to_embed)
            stages.start_soon(self._embed_all, planned, to_write)
            with prepared:
                for _ in range(WRITERS):
                    stages.start_soon(self._write_all, prepared.clone())

    async def _plan_all(
        self, documents: Documents, send: MemoryObjectSendStream[tuple[_Batch, Planned]]
    ) -> None:
        # A later stage has failed, and its error is the one to tell.
        with send, suppress(anyio.BrokenResourceError):
            async with aclosing(self._batches(documents)) as batches:
                async for batch in batches:
                    # Looking for what is stored would miss what is being written.
                    while batch.keys & self._under_way:
                        await self._finished.wait()
                    self._under_way |= batch.keys
                    await send.send((batch, await self._plan(batch)))

    async def _embed_all(
        self,
        receive: MemoryObjectReceiveStream[tuple[_Batch, Planned]],
        send: MemoryObjectSendStream[tuple[_Batch, Prepared]],
    ) -> None:
        # A batch on its way to the writers takes the room of its calls, so that small ones are
        # embedded at once, and few of them wait.
        most = self._writer.max_concurrency
        room = anyio.Semaphore(most)

        async def embed(batch: _Batch, planned: Planned, calls: int) -> None:
            with suppress(anyio.BrokenResourceError):
                for part in await self._embedded(batch, planned):
                    await send.send(part)
            for _ in range(calls):
                room.release()

        with receive, send:
            async with anyio.create_task_group() as embedding:
                await room.acquire()
                async for batch, planned in receive:
                    calls = min(self._writer.calls_of(planned, embed=self._embed) or most, most)
                    for _ in range(calls - 1):
                        await room.acquire()
                    embedding.start_soon(embed, batch, planned, calls)
                    await room.acquire()

    async def _write_all(self, receive: MemoryObjectReceiveStream[tuple[_Batch, Prepared]]) -> None:
        with receive:
            async for batch, prepared in receive:
                await self._write(batch, prepared)

    async def _plan(self, batch: _Batch, before: Prepared | None = None) -> Planned:
        return await self._writer.planner.plan(
            batch.documents, embed=self._embed, session=self._session, before=before
        )

    async def _embedded(self, batch: _Batch, planned: Planned) -> list[tuple[_Batch, Prepared]]:
        """Return the batch embedded, in parts where the embedder refuses documents of it.

        An embedder that has refused all there was is not refusing documents: it has failed.
        """
        refused: list[tuple[_Batch, LLMemoryError]] = []
        parts = await self._accepted(batch, planned, refused)
        if not parts and len(refused) > 1 and not self._has_embedded:
            raise refused[0][1]
        for part, error in refused:
            self._fail(part, error)
        return parts

    async def _accepted(
        self, batch: _Batch, planned: Planned, refused: list[tuple[_Batch, LLMemoryError]]
    ) -> list[tuple[_Batch, Prepared]]:
        try:
            prepared = await self._writer.embed(planned, embed=self._embed)
        except EmbeddingError as error:
            if not self._is_about_a_document(error):
                raise
            if len(batch.documents) == 1:
                refused.append((batch, error))
                return []
        else:
            self._has_embedded |= bool(planned.texts.new)
            return [(batch, prepared)]
        parts = []
        for half in batch.halves():
            parts += await self._accepted(half, await self._plan(half), refused)
        return parts

    async def _write(self, batch: _Batch, prepared: Prepared) -> None:
        try:
            results = await self._writer.commit(prepared, embed=self._embed, session=self._session)
        except (StorageError, EmbeddingError) as error:
            if not self._is_about_a_document(error):
                raise
            if len(batch.documents) == 1:
                self._fail(batch, error)
                return
        else:
            self._finish(batch, results)
            return
        for half in batch.halves():
            planned = await self._plan(half, before=prepared)
            for part, again in await self._embedded(half, planned):
                await self._write(part, again)

    def _is_about_a_document(self, error: LLMemoryError) -> bool:
        """Return whether the others may go on after `error`."""
        if not self._collects or isinstance(error, ProviderUnavailable | DimensionMismatch):
            return False
        if isinstance(error, ProviderRejected):
            return error.status not in _REFUSALS_OF_ALL
        if isinstance(error, StorageError):
            return (error.sqlstate or "").startswith(_REFUSALS_OF_DATA)
        return True

    def _fail(self, batch: _Batch, error: LLMemoryError) -> None:
        failed = [_failed(document.document_name, error) for document in batch.documents]
        self._finish(batch, failed)

    def _finish(self, batch: _Batch, results: Sequence[DocumentAddResult]) -> None:
        for place, result in zip(batch.places, results, strict=True):
            self._results[place] = result
        self._done += len(results)
        self._failed += sum(result.status == "failed" for result in results)
        self._chunks += sum(result.chunks_created for result in results)
        self._under_way -= batch.keys
        self._finished.set()
        self._finished = anyio.Event()
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    documents=self._done,
                    chunks=self._chunks,
                    total=self._total,
                    failed=self._failed,
                )
            )

    async def _batches(self, documents: Documents) -> AsyncGenerator[_Batch]:
        """Yield batches of bounded size, none with one key twice."""
        batch = _Batch([], [])
        keys: set[Key] = set()
        characters = 0
        async with aclosing(_asynchronous(documents)) as items:
            async for document in items:
                place = len(self._results)
                self._results.append(None)
                try:
                    checked = await self._writer.planner.check(document, place)
                except ValidationError as error:
                    if not self._collects:
                        raise
                    self._results[place] = _failed(_name_of(document), error)
                    self._done += 1
                    self._failed += 1
                    self._report()
                    continue
                key = _key(checked)
                if batch.documents and (
                    key in keys
                    or len(batch.documents) >= BATCH_DOCUMENTS
                    or characters + len(checked.content) > BATCH_CHARACTERS
                ):
                    yield batch
                    batch, keys, characters = _Batch([], []), set(), 0
                if key is not None:
                    keys.add(key)
                batch.documents.append(checked)
                batch.places.append(place)
                characters += len(checked.content)
        if batch.documents:
            yield batch


def _failed(name: str, error: LLMemoryError) -> DocumentAddResult:
    return DocumentAddResult(
        document_id="",
        document_name=name,
        status="failed",
        chunks_created=0,
        embeddings_created=0,
        embeddings_queued=0,
        processing_time_ms=0.0,
        error=f"{type(error).__name__}: {error}",
    )


def _name_of(document: NewDocument | Mapping[str, Any]) -> str:
    if isinstance(document, Mapping):
        name = document.get("document_name")
    else:
        name = getattr(document, "document_name", None)
    return name if isinstance(name, str) else ""


def _key(document: CheckedDocument) -> Key | None:
    external_id = document.external_id
    return None if external_id is None else (document.owner_id, external_id)


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
    until = perf_counter() + TURN_S
    taken = []
    for document in islice(documents, ITEMS_A_TURN):
        taken.append(document)
        if perf_counter() > until:
            break
    return taken
