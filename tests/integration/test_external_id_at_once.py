"""``external_id``: the same key is replaced whole, whoever else writes, reads, or ends halfway."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys

import anyio
import pytest
from integration.helpers import (
    GatedEmbedder,
    broken_documents,
    fetch,
    kill_after,
    paragraphs,
    rows,
    together,
)
from integration.keyed_documents import items, only_document
from plugins.memories import MakeMemory
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import Settings

pytestmark = pytest.mark.anyio


async def test_concurrent_adds_of_one_key_leave_one_whole_document(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url)
    contents = [paragraphs("shared", f"own{number}", "end") for number in range(20)]
    results = await together(
        *(
            memory.add_document("acme", f"Name {number}", content, external_id="one")
            for number, content in enumerate(contents)
        )
    )
    assert len({result.document_id for result in results}) == 1
    document = await only_document(memory)
    number = contents.index(document.content)
    assert document.document_name == f"Name {number}"
    assert rows(driver_url)["documents"] == 1
    assert rows(driver_url)["chunks"] == 3
    assert not broken_documents(driver_url)


async def test_writers_that_take_turns_leave_whole_documents(
    make_memory: MakeMemory, driver_url: str
) -> None:
    """Contents that come back: what a writer planned for may be gone although it looks the same."""
    memory = make_memory(driver_url)
    words = ("alpha", "beta", "gamma", "delta")
    contents = [paragraphs(*words[:count]) for count in (1, 2, 3, 4)]
    kinds = ["text", "markdown"]

    async def write(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(8):
            await memory.add_document(
                "acme",
                "Name",
                chosen.choice(contents),
                external_id=chosen.choice("ab"),
                document_type=chosen.choice(kinds),
            )

    async with anyio.create_task_group() as tasks:
        for seed in range(5):
            tasks.start_soon(write, seed)
    assert rows(driver_url)["documents"] == 2
    assert not broken_documents(driver_url)


async def test_content_that_changed_and_came_back_while_a_writer_was_busy(
    make_memory: MakeMemory, database_url: str
) -> None:
    slow_embedder = GatedEmbedder()
    slow, quick = make_memory(embedder=slow_embedder), make_memory()
    first = paragraphs("alpha", "beta", "gamma")
    await quick.add_document("acme", "a", first, external_id="a")
    await slow.initialize()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: slow.add_document(
                "acme", "a", paragraphs("alpha", "beta", "new"), external_id="a"
            )
        )
        await slow_embedder.arrived.wait()
        # The chunks that the slow writer means to keep are deleted and made anew meanwhile.
        await quick.add_document("acme", "a", "Something else.", external_id="a")
        await quick.add_document("acme", "a", first, external_id="a")
        slow_embedder.gate.set()
    assert not broken_documents(database_url)
    assert (await only_document(quick)).content.endswith("new.")


async def test_a_reader_sees_the_old_or_the_new_never_none_never_both(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url)
    versions = [paragraphs(f"version{n}", f"release{n}", "constant") for n in range(51)]
    await memory.add_document("acme", "a", versions[0], external_id="a")
    finished = False
    seen: set[frozenset[str]] = set()

    async def read(search_type: str) -> None:
        while not finished:
            hits = await memory.search("acme", "constant", search_type=search_type, limit=50)
            words = frozenset(hit.content.split()[0] for hit in hits)
            assert "constant" in words
            if search_type == "text":
                assert len(hits) == 1
                continue
            numbers = {re.sub(r"\D", "", word) for word in words} - {""}
            assert len(hits) == 3
            assert len(numbers) == 1
            seen.add(frozenset(numbers))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, "vector")
        tasks.start_soon(read, "hybrid")
        tasks.start_soon(read, "text")
        for version in versions[1:]:
            await memory.add_document("acme", "a", version, external_id="a")
        finished = True
    assert len(seen) > 1


async def test_two_bulk_runs_over_the_same_keys_in_opposite_order(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memories = [make_memory(driver_url) for _ in range(2)]
    # One owner after the other in a batch, new and stored keys, both ways round.
    await memories[0].add_documents(
        items(range(0, 100, 2), "Stored", "acme") + items(range(0, 100, 2), "Stored", "other")
    )
    documents = items(range(100), "{}", "acme") + items(range(100), "{}", "other")
    runs = [
        [{**item, "content": item["content"].format("Left")} for item in documents],
        [{**item, "content": item["content"].format("Right")} for item in reversed(documents)],
    ]
    await together(*(memory.add_documents(run) for memory, run in zip(memories, runs, strict=True)))
    assert rows(driver_url)["documents"] == 200
    assert not broken_documents(driver_url)
    left = fetch(
        driver_url,
        "SELECT count(*) FROM llmemory.documents WHERE content !~ '^(Left|Right) of '",
    )
    assert left == [(0,)]


async def test_cancelled_at_any_point(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    chosen = random.Random(7)
    await memory.add_documents(items(range(40)))
    for number in range(25):
        documents = items(range(60), f"Text {number}")
        task = asyncio.ensure_future(memory.add_documents(documents))
        for _ in range(chosen.randrange(60)):
            await asyncio.sleep(0)
        if number % 2:
            await asyncio.sleep(chosen.random() * 0.03)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        # Done before it was cancelled, or cancelled: no other error takes the place of that.
        assert isinstance(outcome, list | asyncio.CancelledError), repr(outcome)
        assert not broken_documents(driver_url)
    results = await memory.add_documents(items(range(60), "Last"))
    assert len(results) == 60
    assert rows(driver_url)["documents"] == 60
    assert not broken_documents(driver_url)


BULK = """
import asyncio, sys
from llmemory import AsyncMemory, HashEmbedder

async def main():
    memory = AsyncMemory(sys.argv[1], embedder=HashEmbedder())
    documents = [
        {"owner_id": "acme", "document_name": str(n), "content": f"Text {n}. " * 300,
         "external_id": str(n)}
        for n in range(1500)
    ]
    await memory.add_documents(
        documents, on_progress=lambda progress: print(progress.documents, flush=True)
    )
    await memory.close()

asyncio.run(main())
"""


@pytest.mark.direct("ends the server's connections, and reads the answer through one of them")
async def test_killed_in_the_middle_of_a_bulk_run(
    make_memory: MakeMemory, database_url: str
) -> None:
    for lines in (1, 2):
        kill_after(lines, BULK, database_url)
        assert 0 < rows(database_url)["documents"] < 1500
        assert not broken_documents(database_url)
    subprocess.run(
        [sys.executable, "-c", BULK, database_url], check=True, stdout=subprocess.DEVNULL
    )
    assert rows(database_url)["documents"] == 1500
    assert not broken_documents(database_url)
    (again,) = await make_memory().add_documents(
        [
            {
                "owner_id": "acme",
                "document_name": "7",
                "content": "Text 7. " * 300,
                "external_id": "7",
            }
        ]
    )
    assert again.status == "unchanged"


async def test_two_updates_of_different_things_both_last(make_memory: MakeMemory) -> None:
    slow_embedder = GatedEmbedder()
    slow, quick = make_memory(embedder=slow_embedder), make_memory()
    document = await quick.add_document("acme", "Old name", "Old content.")
    await slow.initialize()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: slow.update_document("acme", document.document_id, content="New content.")
        )
        await slow_embedder.arrived.wait()
        await quick.update_document(
            "acme",
            document.document_id,
            document_name="New name",
            additional_metadata={"reviewed": True},
        )
        slow_embedder.gate.set()
    found = await quick.get_document("acme", document.document_id)
    assert found.content == "New content."
    assert found.document_name == "New name"
    assert found.metadata == {"reviewed": True}


async def test_a_document_deleted_while_it_is_replaced_is_added_anew(
    make_memory: MakeMemory, database_url: str
) -> None:
    slow_embedder = GatedEmbedder()
    slow, quick = make_memory(embedder=slow_embedder), make_memory()
    await quick.add_document("acme", "a", "Old text.", external_id="a")
    await slow.initialize()
    results = []

    async def replace() -> None:
        results.append(await slow.add_document("acme", "a", "New text.", external_id="a"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(replace)
        await slow_embedder.arrived.wait()
        assert await quick.delete_owner("acme") == 1
        slow_embedder.gate.set()
    assert results[0].status == "created"
    assert (await only_document(quick)).content == "New text."
    assert not broken_documents(database_url)


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
async def test_an_engine_with_an_isolation_level_of_its_own(
    make_memory: MakeMemory, database_url: str, level: str
) -> None:
    engine = create_async_engine(
        database_url.replace("postgresql:", "postgresql+psycopg:", 1), isolation_level=level
    )
    memory = make_memory(engine=engine)
    await memory.add_document("acme", "a", "Old text.", external_id="a")
    await together(
        *(
            memory.add_document("acme", "a", paragraphs("same", f"own{n}"), external_id="a")
            for n in range(6)
        )
    )
    assert not broken_documents(database_url)
    # One transaction, whatever the engine's default: a failure at its end takes all back.
    fetch(database_url, "ALTER TABLE llmemory.embeddings ADD CONSTRAINT no CHECK (false) NOT VALID")
    before = rows(database_url)
    for key in ("a", "b"):
        with pytest.raises(Exception, match="23514"):
            await memory.add_document("acme", "a", "Newest text.", external_id=key)
    assert rows(database_url) == before
    assert not broken_documents(database_url)
    await engine.dispose()


async def test_many_writers_on_a_small_pool(make_memory: MakeMemory) -> None:
    memory = make_memory(settings=Settings(pool_size=1, pool_overflow=0))
    await together(
        *(memory.add_document("acme", "a", f"Text {n}.", external_id=n % 3) for n in range(30)),
        *(memory.search("acme", "text") for _ in range(30)),
        memory.add_documents(items(range(20))),
    )
    assert (await memory.list_documents("acme")).total_count == 23
