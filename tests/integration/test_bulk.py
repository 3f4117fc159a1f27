"""``add_documents``: its stages run at once, bad documents stop nobody, and again costs nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import anyio
import psycopg
import pytest
from integration.helpers import broken_documents, fetch, kill_after, paragraphs, rows, until, writes
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    EmbeddingError,
    HashEmbedder,
    Progress,
    ProviderRejected,
    ProviderUnavailable,
    Settings,
    StorageUnavailable,
    ValidationError,
)
from llmemory.documents import bulk, planner

pytestmark = pytest.mark.anyio

BATCH = 256


def numbered(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "owner_id": "acme",
            "document_name": f"Document {number}",
            "content": f"This is the text of number {number}.",
            "external_id": str(number),
        }
        for number in numbers
    ]


# -- stages --------------------------------------------------------------------------------------


class Gate(HashEmbedder):
    """Waits in its second call until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waiting = anyio.Event()
        self.opened = anyio.Event()

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        made = await super().embed(texts, purpose=purpose)
        if self.calls == 2:
            self.is_waiting.set()
            await self.opened.wait()
        return made


async def test_one_batch_is_written_and_one_split_while_one_is_embedded(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    split: list[str] = []
    written: list[int] = []

    def plan(document: Any, *others: Any) -> Any:
        split.append(document.document_name)
        return plan_document(document, *others)

    plan_document = planner.plan_document
    monkeypatch.setattr(planner, "plan_document", plan)
    memory = make_memory(embedder=gate, settings=Settings(embedding_batch_size=BATCH))
    async with anyio.create_task_group() as group:

        async def add() -> None:
            await memory.add_documents(
                iter(numbered(range(4 * BATCH))),
                on_progress=lambda progress: written.append(progress.documents),
            )

        group.start_soon(add)
        await gate.is_waiting.wait()
        # The embedder is at the second batch: the first is written and the third is split.
        await until(lambda: written == [BATCH] and len(split) == 3 * BATCH)
        gate.opened.set()
    assert written[-1] == len(split) == 4 * BATCH


@pytest.mark.direct("counts who waits for a lock, which a pooler's few connections limit")
async def test_two_batches_are_written_at_once_and_no_more_are_read_than_fit(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory()
    await memory.initialize()
    taken = 0

    async def documents() -> AsyncIterator[dict[str, Any]]:
        nonlocal taken
        for document in numbered(range(20 * BATCH)):
            taken += 1
            yield document

    def waiting() -> int:
        query = (
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return int(fetch(database_url, query)[0][0])

    with psycopg.connect(database_url) as blocker:
        blocker.execute("LOCK TABLE llmemory.documents IN SHARE MODE")
        async with anyio.create_task_group() as group:
            group.start_soon(memory.add_documents, documents())
            await until(lambda: waiting() == 2)
            # Two wait to be written, one each is embedded, split and about to be.
            await until(lambda: taken > 4 * BATCH)
            for _ in range(20):
                await anyio.sleep(0.01)
            assert taken <= 5 * BATCH + 1
            assert waiting() == 2
            blocker.rollback()
    assert rows(database_url)["documents"] == 20 * BATCH


# -- bad documents -------------------------------------------------------------------------------


class Particular(HashEmbedder):
    """Refuses texts with a word in them, or fails as a whole."""

    def __init__(self, error: Exception, word: str = "poison") -> None:
        super().__init__()
        self.error = error
        self.word = word

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if any(self.word in text for text in texts):
            raise self.error
        return await super().embed(texts, purpose=purpose)


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize(
    "refusal", [ProviderRejected("The input is too long.", status=400), ZeroDivisionError()]
)
async def test_it_goes_on_after_bad_documents_if_asked(
    make_memory: MakeMemory, driver_url: str, kind: Any, refusal: Exception
) -> None:
    memory = make_memory(driver_url, embedder=Particular(refusal))
    documents = numbered(range(600))
    documents[0]["content"] = " "
    documents[7] = "no document"  # type: ignore[call-overload]
    documents[300]["content"] = "This is poison."
    documents[599]["owner_id"] = "a\0b"
    seen: list[Progress] = []
    results = await memory.add_documents(
        kind(documents), on_error="collect", on_progress=seen.append
    )
    failed = {number: result for number, result in enumerate(results) if result.error is not None}
    assert list(failed) == [0, 7, 300, 599]
    assert {result.status for result in failed.values()} == {"failed"}
    assert {result.document_id for result in failed.values()} == {""}
    name = type(refusal).__name__ if isinstance(refusal, ProviderRejected) else "EmbeddingError"
    assert [str(result.error).partition(":")[0] for result in failed.values()] == [
        "ValidationError",
        "ValidationError",
        name,
        "ValidationError",
    ]
    assert failed[300].document_name == "Document 300"
    others = [result for result in results if result.error is None]
    assert {result.status for result in others} == {"created"}
    assert [result.document_name for result in others] == [
        f"Document {number}" for number in range(600) if number not in failed
    ]
    assert rows(driver_url)["documents"] == 596
    assert not broken_documents(driver_url)
    assert (seen[-1].documents, seen[-1].failed) == (600, 4)


async def test_bad_documents_beside_others_that_are_embedded_at_once(
    make_memory: MakeMemory, driver_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH_DOCUMENTS", 10)
    embedder = Particular(ProviderRejected("The input is too long.", status=400))
    embedder.max_concurrency = 5  # type: ignore[attr-defined]
    memory = make_memory(driver_url, embedder=embedder, settings=Settings(embedding_batch_size=4))
    documents = numbered(range(200))
    bad = {3, 4, 77, 110, 199}
    for number in bad:
        documents[number]["content"] = f"This is poison, number {number}."
    results = await memory.add_documents(iter(documents), on_error="collect")
    assert {n for n, result in enumerate(results) if result.status == "failed"} == bad
    assert [result.document_name for result in results] == [f"Document {n}" for n in range(200)]
    assert not broken_documents(driver_url)
    before = embedder.texts
    again = await memory.add_documents(iter(documents), on_error="collect")
    assert {n for n, result in enumerate(again) if result.status != "unchanged"} == bad
    assert embedder.texts == before


async def test_without_asking_it_ends_at_the_first(memory: AsyncMemory, database_url: str) -> None:
    documents = numbered(range(3))
    documents[2]["content"] = ""
    with pytest.raises(ValidationError) as caught:
        await memory.add_documents(documents)
    assert caught.value.index == 2
    assert rows(database_url)["documents"] == 0
    with pytest.raises(ValidationError, match="on_error"):
        await memory.add_documents(documents, on_error="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailable("It does not answer."),
        ProviderRejected("The key is wrong.", status=401),
        EmbeddingError("The model is broken."),
    ],
)
async def test_an_embedder_that_fails_is_no_bad_document(
    make_memory: MakeMemory, database_url: str, error: Exception
) -> None:
    memory = make_memory(embedder=Particular(error, word="text"))
    with pytest.raises(type(error)):
        await memory.add_documents(numbered(range(9)), on_error="collect")
    assert rows(database_url)["documents"] == 0


@pytest.mark.direct("ends the server's connections, and reads the answer through one of them")
async def test_a_database_that_is_down_is_no_bad_document(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory()
    await memory.initialize()
    # asyncpg leaves the error of a COPY that was cancelled as well to nobody.
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)

    def documents() -> Iterator[dict[str, Any]]:
        for number in range(5000):
            if number == 1000:
                fetch(
                    database_url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )
            yield from numbered([number])

    with pytest.raises(StorageUnavailable):
        await memory.add_documents(documents(), on_error="collect")
    await memory.add_documents(numbered(range(5000)), on_error="collect")
    gc.collect()
    loop.set_exception_handler(handler)
    assert rows(database_url)["documents"] == 5000
    assert not broken_documents(database_url)


async def test_what_the_server_refuses_of_one_document(
    make_memory: MakeMemory, driver_url: str, embedder: HashEmbedder
) -> None:
    memory = make_memory(driver_url)
    await memory.initialize()
    fetch(
        driver_url,
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.content LIKE '%number 5.' THEN RAISE 'too long' USING ERRCODE = '54000'; "
        "END IF; RETURN NEW; END $$",
    )
    fetch(
        driver_url,
        "CREATE TRIGGER refuse BEFORE INSERT ON llmemory.chunks FOR EACH ROW "
        "EXECUTE FUNCTION public.refuse()",
    )
    results = await memory.add_documents(numbered(range(10)), on_error="collect")
    assert [result.status for result in results].count("created") == 9
    assert (results[5].status, results[5].chunks_created) == ("failed", 0)
    assert rows(driver_url)["documents"] == 9
    assert not broken_documents(driver_url)
    # What was embedded once is not embedded again for the others' sake.
    assert embedder.texts == 10


# -- again ---------------------------------------------------------------------------------------

INTERRUPTED = """
import asyncio, sys
from integration.test_bulk import numbered
from llmemory import AsyncMemory, HashEmbedder

async def main():
    async with AsyncMemory(sys.argv[1], embedder=HashEmbedder()) as memory:
        await memory.add_documents(
            numbered(range(6000)), on_progress=lambda progress: print("written", flush=True)
        )

asyncio.run(main())
"""


async def test_killed_and_run_again_embeds_only_what_is_missing(
    make_memory: MakeMemory, database_url: str, embedder: HashEmbedder
) -> None:
    kill_after(3, INTERRUPTED, database_url)
    stored = rows(database_url)["documents"]
    assert 3 * BATCH <= stored < 6000
    results = await make_memory().add_documents(numbered(range(6000)))
    assert [result.status for result in results].count("unchanged") == stored
    assert embedder.texts == 6000 - stored
    assert rows(database_url)["documents"] == 6000
    assert not broken_documents(database_url)


async def test_a_thousand_unchanged_documents_cost_nothing(
    make_memory: MakeMemory,
    driver_url: str,
    embedder: HashEmbedder,
    statements: Callable[[AsyncMemory], Any],
) -> None:
    memory = make_memory(driver_url)
    await memory.add_documents(numbered(range(1000)))
    calls = embedder.calls
    with statements(memory) as sent:
        results = await memory.add_documents(numbered(range(1000)))
    assert {result.status for result in results} == {"unchanged"}
    assert embedder.calls == calls
    assert not writes(sent)
    # A statement for each batch tells that.
    assert len(sent) == 4


async def test_of_a_changed_document_only_what_changed_is_embedded(
    memory: AsyncMemory, database_url: str, embedder: HashEmbedder
) -> None:
    document = {"owner_id": "acme", "document_name": "Book", "external_id": "book"}
    words = [f"word{number}" for number in range(200)]
    (first,) = await memory.add_documents([document | {"content": paragraphs(*words)}])
    assert first.chunks_created == first.embeddings_created == 200
    before = embedder.texts
    ids = "SELECT count(*) FROM llmemory.chunks WHERE xmin = %s::xid"
    (made_by,) = fetch(database_url, "SELECT DISTINCT xmin::text FROM llmemory.chunks")
    words[70] = "different"
    (second,) = await memory.add_documents([document | {"content": paragraphs(*words)}])
    assert (second.status, second.chunks_created, second.embeddings_created) == ("replaced", 200, 1)
    assert embedder.texts == before + 1
    # The 70 before it were not even touched; those behind it lie elsewhere in the text now.
    assert fetch(database_url, ids, made_by[0]) == [(70,)]
    assert len(await memory.search("acme", "different")) > 0
