"""What the embedder sees of a chunk, now and later, and what of that is stored: nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from integration.workers import left
from plugins.command_line import Run, one_line
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, ChunkToEmbed, EmbeddingError, HashEmbedder, Memory, Settings
from llmemory.types import Vectors

pytestmark = pytest.mark.anyio

HANDBOOK = "# Leave\n\nStaff have 25 days.\n\n# Pay\n\nOn the last day."
PARTS = ["# Leave\n\nStaff have 25 days.", "# Pay\n\nOn the last day."]


class Listening(HashEmbedder):
    """Keeps the documents it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    async def embed(self, texts: Any, *, purpose: Any) -> Vectors:
        if purpose == "document":
            self.heard += texts
        return await super().embed(texts, purpose=purpose)

    def take(self) -> list[str]:
        heard, self.heard = self.heard, []
        return heard


@pytest.fixture
def embedder() -> Listening:
    return Listening()


def with_headings(make_memory: MakeMemory, **options: Any) -> AsyncMemory:
    return make_memory(settings=Settings(embed_headings=True), **options)


async def add(memory: AsyncMemory, content: str = HANDBOOK, name: str = "Book", **more: Any) -> Any:
    return await memory.add_document(
        "acme", name, content, document_type="markdown", external_id="book", **more
    )


async def similarity(memory: AsyncMemory, text: str) -> float:
    (hit,) = await memory.search("acme", text, search_type="vector", limit=1)
    assert hit.similarity is not None
    return hit.similarity


@pytest.mark.parametrize("embed", ["now", "later"])
async def test_only_the_embedder_sees_it(
    make_memory: MakeMemory, embedder: Listening, embed: Any
) -> None:
    memory = make_memory(
        settings=Settings(embed_headings=True), chunk_context=lambda chunk: "From the archive."
    )
    added = await add(memory, embed=embed)
    assert await memory.process_pending_embeddings() == (embed == "later")
    assert embedder.take() == [
        f"From the archive.\n\nBook > {heading}\n\n{part}"
        for heading, part in zip(("Leave", "Pay"), PARTS, strict=True)
    ]
    hits = await memory.search("acme", "days", highlight=True, context_window=1)
    assert sorted(hit.content for hit in hits) == PARTS
    for shown in (hits[0].highlight, hits[0].context):
        assert shown is not None
        assert "archive" not in shown
    assert await memory.search("acme", "archive", search_type="text") == []
    assert (await memory.get_document("acme", added.document_id)).content == HANDBOOK
    assert await similarity(memory, f"From the archive.\n\nBook > Pay\n\n{PARTS[1]}") > 0.99


async def test_a_renamed_document_is_embedded_anew(
    make_memory: MakeMemory, embedder: Listening
) -> None:
    memory = with_headings(make_memory)
    added = await add(memory)
    assert (await add(memory)).status == "unchanged"
    assert len(embedder.take()) == 2
    renamed = await add(memory, name="Guide")
    assert (renamed.status, renamed.embeddings_created) == ("replaced", 2)
    assert embedder.take() == [f"Guide > Leave\n\n{PARTS[0]}", f"Guide > Pay\n\n{PARTS[1]}"]
    await memory.update_document("acme", added.document_id, document_name="Manual")
    assert [text.partition(" ")[0] for text in embedder.take()] == ["Manual", "Manual"]
    statistics = await memory.get_statistics("acme")
    assert (statistics.chunk_count, statistics.embedding_count) == (2, 2)


async def test_a_document_renamed_while_it_waits_is_embedded_by_its_last_name(
    make_memory: MakeMemory, embedder: Listening
) -> None:
    memory = with_headings(make_memory)
    for name in ("Book", "Guide"):
        await add(memory, name=name, embed="later")
    await memory.process_pending_embeddings()
    assert [text.partition(" ")[0] for text in embedder.take()] == ["Guide", "Guide"]
    statistics = await memory.get_statistics("acme")
    assert (statistics.embedding_count, statistics.pending_embeddings) == (2, 0)


async def test_without_the_setting_a_name_changes_no_vector(
    make_memory: MakeMemory, embedder: Listening
) -> None:
    memory = make_memory()
    await add(memory)
    assert embedder.take() == PARTS
    assert (await add(memory, name="Guide")).status == "unchanged"
    assert embedder.take() == []


class TestContexts:
    async def test_the_function_is_asked_for_what_changed(
        self, make_memory: MakeMemory, embedder: Listening
    ) -> None:
        asked: list[ChunkToEmbed] = []

        async def make(chunk: ChunkToEmbed) -> str:
            asked.append(chunk)
            return "Context."

        memory = make_memory(chunk_context=make)
        await add(memory)
        assert asked == [
            ChunkToEmbed("acme", "Book", (heading,), part, HANDBOOK)
            for heading, part in zip(("Leave", "Pay"), PARTS, strict=True)
        ]
        asked.clear()
        await add(memory)
        assert asked == []
        changed = HANDBOOK.replace("25", "30")
        await add(memory, changed)
        assert [chunk.content for chunk in asked] == [PARTS[0].replace("25", "30")]
        assert asked[0].document_content == changed

    async def test_later_it_is_given_the_same(self, make_memory: MakeMemory) -> None:
        seen: list[list[ChunkToEmbed]] = []
        for embed in ("now", "later"):
            asked: list[ChunkToEmbed] = []

            def make(chunk: ChunkToEmbed, asked: list[ChunkToEmbed] = asked) -> None:
                asked.append(chunk)

            memory = make_memory(chunk_context=make)
            await memory.delete_owner("acme")
            await add(memory, embed=embed)
            await memory.process_pending_embeddings()
            seen.append(sorted(asked, key=lambda chunk: chunk.content))
        assert seen[0] == seen[1]
        assert len(seen[0]) == 2

    async def test_equal_chunks_of_two_documents_have_contexts_of_their_own(
        self, make_memory: MakeMemory, embedder: Listening
    ) -> None:
        memory = make_memory(chunk_context=lambda chunk: f"Of {chunk.document_name}.")
        await memory.add_documents(
            {"owner_id": "acme", "document_name": name, "content": "Yours sincerely"}
            for name in ("one", "two")
        )
        assert embedder.take() == ["Of one.\n\nYours sincerely", "Of two.\n\nYours sincerely"]

    async def test_a_failure_stores_nothing_and_asks_for_nothing_twice(
        self, make_memory: MakeMemory
    ) -> None:
        asked: list[str] = []

        def make(chunk: ChunkToEmbed) -> str:
            asked.append(chunk.content)
            if len(asked) == 2:
                raise TimeoutError
            return "Context."

        memory = make_memory(chunk_context=make, settings=Settings(chunk_context_concurrency=1))
        with pytest.raises(EmbeddingError, match="chunk_context failed with TimeoutError"):
            await add(memory)
        assert (await memory.list_documents("acme")).total_count == 0
        await add(memory)
        assert asked == [PARTS[0], PARTS[1], PARTS[1]]

    def test_the_blocking_twin(self, database_url: str, embedder: Listening) -> None:
        def make(chunk: ChunkToEmbed) -> str:
            # It may use the memory itself: it runs in a thread.
            return f"One of {memory.get_statistics('acme').document_count}."

        with Memory(database_url, embedder=embedder, chunk_context=make) as memory:
            memory.add_document("acme", "Note", "The lift is broken.")
        assert embedder.take() == ["One of 0.\n\nThe lift is broken."]


def test_commands_import_the_function(
    run: Run, notes: Path, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "contexts_of_mine.py").write_text(
        "asked = []\ndef say(chunk):\n    asked.append(chunk.document_name)\n    return 'Mine.'\n"
    )
    option = ("--chunk-context", "contexts_of_mine:say")
    run("add", notes, *option)
    asked = sys.modules["contexts_of_mine"].asked
    names = ["notes/deep/tea.TXT", "notes/leave.md"]
    assert sorted(asked) == names
    asked.clear()
    left(database_url, HashEmbedder(), "One.")
    run("worker", "--once", LLMEMORY_CHUNK_CONTEXT=option[1])
    assert asked == ["name"]
    run("reembed", *option, LLMEMORY_HASH_DIMENSIONS="64")
    assert sorted(asked) == ["name", "name", *names]
    problem = run("reembed", "--chunk-context", "contexts_of_mine:no", code=1).stderr
    assert "'contexts_of_mine:no' cannot be imported (AttributeError" in one_line(problem)
