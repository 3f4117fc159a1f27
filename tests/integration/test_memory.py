"""The blocking face: without a loop, under threads, across forks, at exit and under Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from integration.helpers import PATIENCE_S, fetch, wait_until
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import (
    ClosedError,
    ConfigurationError,
    DocumentNotFoundError,
    HashEmbedder,
    Memory,
    ValidationError,
)
from llmemory._bridge import bridge


@pytest.fixture
def blocking_memory(driver_url: str) -> Iterator[Memory]:
    with Memory(driver_url, embedder=HashEmbedder()) as memory:
        yield memory


def test_the_main_calls(blocking_memory: Memory) -> None:
    memory = blocking_memory
    added = memory.add_document("acme", "Leave", "Staff have 25 days of leave.")
    memory.add_documents(
        {"owner_id": "acme", "document_name": str(n), "content": f"Text {n}."} for n in range(100)
    )
    assert memory.search("acme", "days of leave")[0].document_id == added.document_id
    assert memory.search_with_documents("acme", "leave").documents[0].document_name == "Leave"
    assert memory.list_documents("acme").total_count == 101
    assert memory.update_document("acme", added.document_id, content="New.").status == "replaced"
    assert memory.get_document("acme", added.document_id).content == "New."
    assert memory.get_statistics("acme").document_count == 101
    assert memory.health().healthy
    memory.delete_document("acme", added.document_id)
    with pytest.raises(DocumentNotFoundError):
        memory.get_document("acme", added.document_id)
    with pytest.raises(ValidationError):
        memory.search("acme", "")
    assert memory.delete_owner("acme") == 100
    memory.close()
    memory.close()
    with pytest.raises(ClosedError):
        memory.search("acme", "leave")


def test_an_iterable_may_use_the_memory_itself(blocking_memory: Memory) -> None:
    def documents() -> Iterator[dict[str, Any]]:
        for number in range(3):
            count = blocking_memory.list_documents("acme").total_count
            assert threading.current_thread() is not threading.main_thread() or count >= 0
            yield {"owner_id": "acme", "document_name": str(number), "content": "Text."}

    assert len(blocking_memory.add_documents(documents())) == 3


def test_an_iterable_abandoned_half_way_is_closed(blocking_memory: Memory) -> None:
    closed: list[bool] = []

    def documents() -> Iterator[dict[str, Any]]:
        try:
            for number in range(100_000):
                name = "" if number == 700 else str(number)
                yield {"owner_id": "acme", "document_name": name, "content": "Text."}
        finally:
            closed.append(True)

    with pytest.raises(ValidationError):
        blocking_memory.add_documents(documents())
    assert closed == [True]


def test_an_async_iterable_abandoned_half_way_is_closed(blocking_memory: Memory) -> None:
    closed: list[bool] = []

    async def documents() -> AsyncIterator[dict[str, Any]]:
        try:
            for number in range(100_000):
                name = "" if number == 700 else str(number)
                yield {"owner_id": "acme", "document_name": name, "content": "Text."}
        finally:
            closed.append(True)

    with pytest.raises(ValidationError):
        blocking_memory.add_documents(documents())
    assert closed == [True]


def test_many_threads_share_one_memory(blocking_memory: Memory) -> None:
    def work(number: int) -> int:
        blocking_memory.add_document("acme", str(number), f"Leave number {number}.")
        return len(blocking_memory.search("acme", "leave", limit=100))

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(work, range(48))) <= 48
    assert blocking_memory.list_documents("acme").total_count == 48
    bridges = [thread for thread in threading.enumerate() if thread.name == "llmemory"]
    assert len(bridges) == 1


def test_inside_a_running_loop(blocking_memory: Memory) -> None:
    async def cell() -> int:
        blocking_memory.add_document("acme", "a", "Leave.")
        return len(blocking_memory.search("acme", "leave"))

    assert asyncio.run(cell()) == 1


def run(script: str, url: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + script, url],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )


PREAMBLE = """
import os, sys, time
from llmemory import HashEmbedder, Memory
memory = Memory(sys.argv[1], embedder=HashEmbedder())
"""

FORKED = """
for number in range(4):
    if os.fork() == 0:
        memory.add_document("acme", str(number), "Leave of a child.")
        assert memory.search("acme", "leave")
        sys.exit(0)
assert [os.wait()[1] for _ in range(4)] == [0] * 4
assert memory.list_documents("acme").total_count >= 4
print("fine")
"""


@pytest.mark.parametrize("warm", ["memory.search('acme', 'x')", "", "memory.initialize()"])
def test_forks_before_and_after_the_first_call(driver_url: str, warm: str) -> None:
    done = run(warm + FORKED, driver_url)
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)


def test_a_fork_while_threads_are_calling(database_url: str) -> None:
    script = """
import threading
memory.add_document("acme", "a", "Leave.")
stop = threading.Event()
def work():
    while not stop.is_set():
        memory.search("acme", "leave")
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
for _ in range(6):
    if os.fork() == 0:
        assert len(memory.search("acme", "leave")) == 1
        os._exit(0)
assert [os.wait()[1] for _ in range(6)] == [0] * 6
stop.set()
[thread.join() for thread in threads]
print("fine")
"""
    done = run(script, database_url)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@pytest.mark.parametrize(
    "ending",
    ["", "memory.close()", "del memory", "import gc; gc.disable()", "raise SystemExit(0)",
     "import atexit; atexit.register(lambda: memory.close())"],
)  # fmt: skip
def test_the_interpreter_exits(driver_url: str, ending: str) -> None:
    done = run(f"memory.search('acme', 'x')\nprint('fine')\n{ending}\n", driver_url)
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_no_connection_is_left(
    blocking_memory: Memory, driver_url: str, connections: Callable[[], int]
) -> None:
    blocking_memory.search("acme", "x")
    assert connections() > 0
    blocking_memory.close()
    wait_until(lambda: connections() == 0)


@pytest.fixture
def connections(driver_url: str) -> Callable[[], int]:
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'llmemory'"
    )
    return lambda: fetch(driver_url, query)[0][0]


def test_ctrl_c_cancels_the_work(database_url: str) -> None:
    script = """
import anyio, threading, signal
class Slow(HashEmbedder):
    async def embed(self, texts, *, purpose):
        print("embedding", flush=True)
        # By then the main thread has long been waiting.
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            print(type(error).__name__, flush=True)
            raise
memory.initialize()
slow = Memory(sys.argv[1], embedder=Slow())
try:
    slow.add_document("acme", "a", "text")
except KeyboardInterrupt:
    print("interrupted")
print(memory.list_documents("acme").total_count)
"""
    done = run(script, database_url)
    assert done.stdout.split() == ["embedding", "CancelledError", "interrupted", "0"], done.stderr


def test_an_engine_cannot_cross_a_fork(database_url: str) -> None:
    engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:", 1))
    memory = Memory.from_engine(engine, embedder=HashEmbedder())
    memory.add_document("acme", "a", "Leave.")
    child = os.fork()
    if child == 0:
        try:
            memory.search("acme", "leave")
        except ConfigurationError as error:
            os._exit(0 if "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(memory.search("acme", "leave")) == 1
    memory.close()
    # In the loop where its connections live.
    bridge().call(engine.dispose)


def test_a_signal_handler_does_not_lose_the_result(blocking_memory: Memory) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        for _ in range(20):
            assert blocking_memory.search("acme", "x") == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_a_memory_collected_in_the_loops_own_thread_is_closed(database_url: str) -> None:
    memory = Memory(database_url, embedder=HashEmbedder())
    memory.initialize()
    cycle: list[Any] = [memory]
    cycle.append(cycle)
    assert sessions(database_url)
    del memory, cycle

    async def collect() -> None:
        gc.collect()

    bridge().call(collect)
    wait_until(lambda: not sessions(database_url))


def sessions(url: str) -> list[Any]:
    return fetch(
        url,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'llmemory' AND pid <> pg_backend_pid()",
    )


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_a_process_in_a_call_ends_only_that_call(
    database_url: str, error: type[BaseException]
) -> None:
    def leave(progress: object) -> None:
        raise error

    class Slow(HashEmbedder):
        async def embed(self, texts: Any, *, purpose: Any) -> Any:
            started.set()
            await asyncio.sleep(0.5)
            return await super().embed(texts, purpose=purpose)

    started = threading.Event()
    document = {"owner_id": "acme", "document_name": "Leave", "content": "25 days of leave."}
    with (
        Memory(database_url, embedder=HashEmbedder()) as memory,
        Memory(database_url, embedder=Slow()) as other,
        ThreadPoolExecutor() as threads,
    ):
        searching = threads.submit(other.search, "acme", "leave")
        assert started.wait(10)
        with pytest.raises(error):
            memory.add_documents([document], on_progress=leave)
        assert searching.result(10) is not None
        assert len(memory.search("acme", "leave")) == 1


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_close_leaves_no_connection_of_calls_under_way(database_url: str) -> None:
    memory = Memory(database_url, embedder=HashEmbedder())
    memory.initialize()

    def search() -> None:
        with suppress(ClosedError):
            while True:
                memory.search("acme", "leave")

    with ThreadPoolExecutor(6) as threads:
        searching = [threads.submit(search) for _ in range(6)]
        time.sleep(0.3)
        memory.close()
        for call in searching:
            call.result(PATIENCE_S)
    wait_until(lambda: not sessions(database_url))


def test_a_slow_source_of_documents_can_be_interrupted(database_url: str) -> None:
    main = threading.get_ident()

    def slow() -> Iterator[dict[str, str]]:
        for number in count():
            time.sleep(0.1)
            if number == 3:
                signal.pthread_kill(main, signal.SIGINT)
            yield {"owner_id": "acme", "document_name": str(number), "content": "Leave."}

    with Memory(database_url, embedder=HashEmbedder()) as memory:
        with pytest.raises(KeyboardInterrupt):
            memory.add_documents(slow())
        assert memory.search("acme", "leave") == []
