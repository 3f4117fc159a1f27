"""The FastAPI helpers, through its test client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    HashEmbedder,
    StorageUnavailable,
)
from llmemory.fastapi import (
    MemoryDependency,
    get_memory,
    install_error_handlers,
    memory_lifespan,
)
from llmemory.types import DocumentAddResult, SearchResult

NOWHERE = "postgresql://nobody:hunter2@127.0.0.1:1/nothing"


@pytest.fixture
def make(database_url: str) -> Callable[[], AsyncMemory]:
    """What an application passes to ``memory_lifespan``."""
    return lambda: AsyncMemory(database_url, embedder=HashEmbedder())


@pytest.fixture
def app(make: Callable[[], AsyncMemory]) -> FastAPI:
    return with_routes(FastAPI(lifespan=memory_lifespan(make)))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def with_routes(app: FastAPI) -> FastAPI:
    install_error_handlers(app)

    @app.post("/{owner}")
    async def add(owner: str, content: str, memory: MemoryDependency) -> DocumentAddResult:
        return await memory.add_document(owner, "Note", content)

    @app.get("/{owner}")
    async def search(owner: str, query: str, memory: MemoryDependency) -> list[SearchResult]:
        return await memory.search(owner, query)

    @app.delete("/{owner}/{document_id}", status_code=204)
    async def delete(owner: str, document_id: str, memory: MemoryDependency) -> None:
        await memory.delete_document(owner, document_id)

    @app.websocket("/{owner}")
    async def answer(socket: WebSocket, owner: str, memory: MemoryDependency) -> None:
        await socket.accept()
        hits = await memory.search(owner, await socket.receive_text())
        await socket.send_json([hit.content for hit in hits])
        await socket.close()

    return app


def test_results_are_returned_as_they_are(client: TestClient) -> None:
    added = client.post("/acme", params={"content": "Staff have leave."}).json()
    assert added["status"] == "created"
    (hit,) = client.get("/acme", params={"query": "leave"}).json()
    assert (hit["content"], hit["document_id"]) == ("Staff have leave.", added["document_id"])
    assert client.get("/other", params={"query": "leave"}).json() == []


def test_a_websocket_has_the_memory_too(client: TestClient) -> None:
    client.post("/acme", params={"content": "Staff have leave."})
    with client.websocket_connect("/acme") as socket:
        socket.send_text("leave")
        assert socket.receive_json() == ["Staff have leave."]


def test_an_error_closes_a_websocket(app: FastAPI, client: TestClient) -> None:
    with client.websocket_connect("/acme") as socket:
        socket.send_text(" ")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert (closed.value.code, "query_text" in closed.value.reason) == (1008, True)

    app.dependency_overrides[get_memory] = lambda: AsyncMemory(NOWHERE, embedder=HashEmbedder())
    with client.websocket_connect("/acme") as socket:
        socket.send_text("leave")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert closed.value.code == 1013


def test_an_application_may_start_again(app: FastAPI) -> None:
    opened = []
    for _ in range(2):
        with TestClient(app) as client:
            opened.append(app.state.memory)
            assert client.get("/acme", params={"query": "leave"}).status_code == 200
    assert opened[0] is not opened[1]


def test_beside_a_lifespan_of_the_application(make: Callable[[], AsyncMemory]) -> None:
    order = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with memory_lifespan(make)(app):
            order.append((await app.state.memory.health()).healthy)
            yield
        order.append(await is_closed(app.state.memory))

    app = with_routes(FastAPI(lifespan=lifespan))
    with TestClient(app) as client:
        assert client.get("/acme", params={"query": "leave"}).status_code == 200
    assert order == [True, True]


async def is_closed(memory: AsyncMemory) -> bool:
    try:
        await memory.health()
    except Exception as error:
        return type(error).__name__ == "ClosedError"
    return False


def test_settings_come_from_the_environment(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMEMORY_DATABASE_URL", database_url)
    monkeypatch.setenv("LLMEMORY_EMBEDDER", "hash")
    app = with_routes(FastAPI(lifespan=memory_lifespan()))
    with TestClient(app) as client:
        assert client.get("/acme", params={"query": "leave"}).json() == []


def test_an_application_whose_database_is_away_does_not_start() -> None:
    make = memory_lifespan(lambda: AsyncMemory(NOWHERE, embedder=HashEmbedder()))
    with pytest.raises(StorageUnavailable), TestClient(FastAPI(lifespan=make)):
        pass


def test_errors_that_callers_can_mend(client: TestClient) -> None:
    blank = client.post("/acme", params={"content": " "})
    assert blank.status_code == 422
    assert "content" in blank.json()["detail"]
    absent = client.delete("/acme/00000000-0000-0000-0000-000000000000")
    assert absent.status_code == 404
    assert set(absent.json()) == {"detail"}


def test_another_memory_in_its_place(app: FastAPI, client: TestClient) -> None:
    elsewhere = AsyncMemory(NOWHERE, embedder=HashEmbedder())
    app.dependency_overrides[get_memory] = lambda: elsewhere
    answer = client.get("/acme", params={"query": "leave"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert not any(word in answer.text for word in ("hunter2", "127.0.0.1", "nobody"))


def test_other_errors_stay_errors_of_the_application() -> None:
    client = TestClient(with_routes(FastAPI()), raise_server_exceptions=False)
    answer = client.get("/acme", params={"query": "leave"})
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    with pytest.raises(ConfigurationError, match="memory_lifespan"):
        TestClient(with_routes(FastAPI())).get("/acme", params={"query": "leave"})
