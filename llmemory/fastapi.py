"""FastAPI: a memory for the application's lifetime, a dependency, and errors as statuses.

::

    app = FastAPI(lifespan=memory_lifespan())
    install_error_handlers(app)


    @app.get("/search")
    async def search(query: str, memory: MemoryDependency) -> list[SearchResult]:
        return await memory.search("acme", query)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, TypeAlias

from llmemory.core import AsyncMemory
from llmemory.errors import ConfigurationError
from llmemory.extras import importing
from llmemory.web import ANSWERED, answer_to

with importing("fastapi"):
    from fastapi import Depends, FastAPI, status
    from fastapi.requests import HTTPConnection
    from fastapi.responses import JSONResponse
    from fastapi.websockets import WebSocket, WebSocketState

__all__ = ["MemoryDependency", "get_memory", "install_error_handlers", "memory_lifespan"]

_ACCEPTED = WebSocketState.CONNECTED
_CLOSE_CODES = {status.HTTP_503_SERVICE_UNAVAILABLE: status.WS_1013_TRY_AGAIN_LATER}


def memory_lifespan(
    make: Callable[[], AsyncMemory] = AsyncMemory,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan that opens a memory at start-up and closes it at shutdown.

    In between it is ``app.state.memory``. It connects, migrates and checks at start-up, so that
    an application whose set-up is wrong does not start. Beside a lifespan of your own, enter it
    there: ``async with memory_lifespan()(app), ...: yield``.

    Args:
        make: Makes the memory, at each start-up anew:
            ``lambda: AsyncMemory("postgresql://localhost/app", schema="notes")``.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with make() as memory:
            app.state.memory = memory
            yield

    return lifespan


def get_memory(connection: HTTPConnection) -> AsyncMemory:
    """Return the application's memory, for ``Depends``.

    Tests may put another in its place: ``app.dependency_overrides[get_memory] = lambda: memory``.

    Raises:
        ConfigurationError: The application has none.
    """
    memory: AsyncMemory | None = getattr(connection.app.state, "memory", None)
    if memory is None:
        raise ConfigurationError(
            "This application has no memory: pass lifespan=memory_lifespan() to FastAPI, or set "
            "app.state.memory in a lifespan of yours. A mounted application needs its own."
        )
    return memory


MemoryDependency: TypeAlias = Annotated[AsyncMemory, Depends(get_memory)]
"""The application's memory as a parameter of an endpoint."""


def install_error_handlers(app: FastAPI) -> None:
    """Answer errors of a memory with their status and ``{"detail": "..."}``.

    ValidationError becomes 422, DocumentNotFoundError 404, ConflictError 409, StorageUnavailable
    and ProviderUnavailable 503 with ``Retry-After``. Other errors stay unhandled: a status 500,
    and a traceback in the server's log. A WebSocket that was accepted is closed instead, with the
    detail as its reason.
    """
    for kind in ANSWERED:
        app.add_exception_handler(kind, _answer)


async def _answer(connection: HTTPConnection, error: Exception) -> Any:
    answer = answer_to(error)
    if isinstance(connection, WebSocket) and connection.application_state is _ACCEPTED:
        code = _CLOSE_CODES.get(answer.status, status.WS_1008_POLICY_VIOLATION)
        # A close frame has room for so many bytes.
        await connection.close(code, answer.body["detail"].encode()[:123].decode(errors="ignore"))
        return None
    return JSONResponse(answer.body, answer.status, answer.headers)
