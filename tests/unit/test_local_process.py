"""The process of a local model, with a stand-in for the model; with a real one: tests/local."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import pytest

from llmemory import (
    ClosedError,
    ConfigurationError,
    EmbeddingError,
    LocalEmbedder,
    ProviderUnavailable,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="sees by a FIFO who lives"),
]

STAND_IN = Path(__file__).parent / "stand_in"
LONG = "sleep 200"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    return tmp_path


@pytest.fixture
def embedder(model: Path) -> LocalEmbedder:
    return LocalEmbedder(model, dimensions=3)


@pytest.fixture
def alive(model: Path) -> Iterator[int]:
    """What can be read to its end when the processes of the model have ended."""
    os.mkfifo(model / "alive")
    reader = os.open(model / "alive", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    yield reader
    os.close(reader)


def lengths(*texts: str) -> np.ndarray:
    rows = np.array([[0, len(text), 1] for text in texts], dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def assert_it_works(embedder: LocalEmbedder) -> None:
    texts = ["one", "number two", "", "ünï \ud800"]
    assert np.allclose(await embedder.embed(texts, purpose="document"), lengths(*texts))


def process_id(embedder: LocalEmbedder) -> int:
    return embedder._shared._process._process.pid


def is_waited_for(process: int) -> bool:
    """Return whether no process of this number is left behind as a zombie."""
    try:
        os.waitpid(process, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


class TestAnswers:
    async def test_what_a_library_prints_is_no_answer(
        self, embedder: LocalEmbedder, capfd: pytest.CaptureFixture[str]
    ) -> None:
        await embedder.embed(["print"], purpose="query")
        await assert_it_works(embedder)
        assert capfd.readouterr() == ("", "")

    async def test_errors_say_what_failed_but_no_text(self, embedder: LocalEmbedder) -> None:
        for text, word in (("fail", "ValueError"), ("allocate", "smaller batch_size")):
            with pytest.raises(EmbeddingError, match=word) as caught:
                await embedder.embed([f"{text} private"], purpose="document")
            cause = str(caught.value.__cause__)
            assert "private" not in f"{caught.value} {cause}"
            assert "stand_in/sentence_transformers.py" in cause
        await assert_it_works(embedder)

    async def test_a_cancelled_call_leaves_no_answer_behind(self, embedder: LocalEmbedder) -> None:
        await assert_it_works(embedder)
        process = process_id(embedder)
        for _ in range(3):
            with anyio.move_on_after(0.02):
                await embedder.embed(["sleep 0.1"], purpose="document")
        await assert_it_works(embedder)
        assert process_id(embedder) == process

    async def test_more_than_a_pipe_holds(self, embedder: LocalEmbedder) -> None:
        texts = ["x" * 1_000_000, "y" * 300_000]
        assert np.allclose(await embedder.embed(texts, purpose="query"), lengths(*texts))

    async def test_an_event_loop_does_not_wait_for_dimensions(self, model: Path) -> None:
        embedder = LocalEmbedder(model)
        assert repr(embedder) == f"LocalEmbedder('{model}', dimensions=None)"
        await embedder.find_dimensions()
        assert repr(embedder) == f"LocalEmbedder('{model}', dimensions=3)"
        other = LocalEmbedder(model)
        await assert_it_works(other)
        assert other.dimensions == 3

    def test_a_model_that_cannot_be_loaded(self, model: Path) -> None:
        with pytest.raises(ConfigurationError, match="on 'none': OSError") as caught:
            LocalEmbedder(model, device="none")
        assert "no such device: none" in str(caught.value.__cause__)


class TestDying:
    async def test_killed_it_is_started_anew(
        self, embedder: LocalEmbedder, caplog: pytest.LogCaptureFixture
    ) -> None:
        await assert_it_works(embedder)
        first = process_id(embedder)
        os.kill(first, signal.SIGKILL)
        await assert_it_works(embedder)
        assert process_id(embedder) != first
        assert is_waited_for(first)
        assert "starting anew" in caplog.text

    async def test_twice_is_an_error_and_no_more(self, embedder: LocalEmbedder) -> None:
        with pytest.raises(ProviderUnavailable, match="died, and again") as caught:
            await embedder.embed(["die"], purpose="document")
        assert "exit code -9" in str(caught.value.__cause__)
        await assert_it_works(embedder)

    def test_while_the_model_is_loaded(self, model: Path) -> None:
        with pytest.raises(ProviderUnavailable, match="died, and again"):
            LocalEmbedder(model, device="broken")

    async def test_signals_to_the_whole_group_are_not_for_it(self, embedder: LocalEmbedder) -> None:
        await assert_it_works(embedder)
        process = process_id(embedder)
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGTERM)
        await assert_it_works(embedder)
        assert process_id(embedder) == process


class TestEnding:
    async def test_closed_with_the_last_of_its_embedders(
        self, embedder: LocalEmbedder, model: Path, alive: int
    ) -> None:
        other = LocalEmbedder(model, dimensions=3)
        await assert_it_works(embedder)
        await assert_it_works(other)
        process = process_id(other)
        assert process_id(embedder) == process
        await embedder.aclose()
        await embedder.aclose()
        with pytest.raises(ClosedError):
            await embedder.embed(["one"], purpose="document")
        await assert_it_works(other)
        await other.aclose()
        assert is_waited_for(process)
        assert os.read(alive, 1) == b""
        await assert_it_works(LocalEmbedder(model, dimensions=3))

    async def test_closing_ends_what_is_under_way(self, embedder: LocalEmbedder) -> None:
        await assert_it_works(embedder)

        async def embed() -> None:
            with pytest.raises(ClosedError):
                await embedder.embed([LONG], purpose="document")

        async with anyio.create_task_group() as group:
            group.start_soon(embed)
            await anyio.sleep(0.05)
            await embedder.aclose()

    async def test_forgotten(self, model: Path, alive: int) -> None:
        embedder = LocalEmbedder(model, dimensions=3)
        await assert_it_works(embedder)
        # The thread that it worked in may not have let go of it yet.
        del embedder
        gc.collect()
        assert os.read(alive, 1) == b""

    def test_with_the_application_however_that_ends(self, model: Path, alive: int) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", APPLICATION, model],
            env={**os.environ, "PYTHONPATH": str(STAND_IN)},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (done.stdout, done.stderr) == ("works\nworks\nworks\nworks\n", "")
        assert done.returncode == -signal.SIGKILL
        assert os.read(alive, 1) == b""


# Without a guard; two forks of it end, one of them daemonic, before it is killed.
APPLICATION = """
import asyncio, multiprocessing, os, signal, sys
from llmemory import LocalEmbedder

embedder = LocalEmbedder(sys.argv[1])

def embed():
    (vector,) = asyncio.run(embedder.embed(["one"], purpose="document"))
    print("works" if vector[1] > vector[2] > 0 else vector, flush=True)

embed()
if (fork := os.fork()) == 0:
    embed()
    sys.exit()
os.waitpid(fork, 0)
daemon = multiprocessing.get_context("fork").Process(target=embed, daemon=True)
daemon.start()
daemon.join()
embed()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_threads_that_race_start_one_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmemory.embedding import local_model

    started = []
    start = local_model.ModelProcess

    def counted(*arguments: str) -> local_model.ModelProcess:
        started.append(arguments)
        return start(*arguments)

    monkeypatch.setattr(local_model, "ModelProcess", counted)
    embedders = [LocalEmbedder(model, dimensions=3) for _ in range(3)] * 2
    threads = [
        threading.Thread(target=asyncio.run, args=[assert_it_works(embedder)])
        for embedder in embedders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == [(str(model), None)]
