"""``Memory``: the blocking twin of ``AsyncMemory``, derived from it method by method."""

from __future__ import annotations

import ctypes
import inspect
import os
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, get_type_hints

from llmemory._bridge import Bridge, bridge
from llmemory.concurrency.forks import ProcessLock
from llmemory.core import AsyncMemory
from llmemory.embedding.base import Embedder
from llmemory.embedding.contexts import ChunkContext
from llmemory.errors import ClosedError, ConfigurationError
from llmemory.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Memory"]

P = ParamSpec("P")
R = TypeVar("R")


def blocking(
    method: Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Memory, P], R]:
    """Return the blocking twin of a coroutine method, with its signature and docstring."""

    def call(self: Memory, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._call(partial(method, self._core(), *args, **kwargs))

    # Not functools.wraps: its __wrapped__ leads frameworks to the coroutine function.
    call.__name__ = method.__name__
    call.__qualname__ = f"Memory.{method.__name__}"
    call.__doc__ = method.__doc__
    call.__module__ = __name__
    # As objects, for the names in them are those of another module.
    call.__annotations__ = get_type_hints(method, include_extras=True)
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return call


class Memory:
    """A memory of documents in PostgreSQL, for applications without an event loop.

    Every method of ``AsyncMemory`` under the same name, blocking. All memories of a process share
    one thread with an event loop, made at the first call; it is safe to use a memory from many
    threads, to make it before or after a fork, and to leave it to the interpreter's exit.

    Args:
        connection_string: As for ``AsyncMemory``.
        openai_api_key: As for ``AsyncMemory``.
        engine: An AsyncEngine of yours that no other event loop uses. It cannot cross a fork.
        replica_engine: As for ``AsyncMemory``; the same holds of it.
        schema: As for ``AsyncMemory``.
        embedder: As for ``AsyncMemory``.
        settings: As for ``AsyncMemory``.
        chunk_context: As for ``AsyncMemory``.

    Raises:
        ConfigurationError: The arguments contradict each other, or no embedder is installed.

    Example:
        >>> with Memory("postgresql://localhost/app") as memory:
        ...     memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        ...     hits = memory.search("acme", "How much holiday do I get?")
    """

    def __init__(
        self,
        connection_string: str | None = None,
        *,
        openai_api_key: str | None = None,
        engine: AsyncEngine | None = None,
        replica_engine: AsyncEngine | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> None:
        core = AsyncMemory(
            connection_string,
            openai_api_key=openai_api_key,
            engine=engine,
            replica_engine=replica_engine,
            schema=schema,
            embedder=embedder,
            settings=settings,
            chunk_context=chunk_context,
        )
        self.settings = core.settings
        self.schema = core.schema
        self.execution_options = core.execution_options
        self._brings_engine = engine is not None or replica_engine is not None
        self._chunk_context = chunk_context
        self._is_closed = False
        self._pid = os.getpid()
        self._inner = core
        _cores.add(core)
        self._finalizer = weakref.finalize(self, _close_core, core, self._pid)

    @classmethod
    def from_engine(
        cls,
        engine: AsyncEngine,
        *,
        replica_engine: AsyncEngine | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> Self:
        """Return a memory on an engine of yours; several may share it, each with its schema.

        The engine stays yours: ``close`` does not dispose of it.
        """
        return cls(
            engine=engine,
            replica_engine=replica_engine,
            schema=schema,
            embedder=embedder,
            settings=settings,
            chunk_context=chunk_context,
        )

    @property
    def embedder(self) -> Embedder:
        """What makes the vectors; ``reembed`` puts another in its place."""
        return self._inner.embedder

    initialize = blocking(AsyncMemory.initialize)
    add_document = blocking(AsyncMemory.add_document)
    build_document = blocking(AsyncMemory.build_document)
    add_documents = blocking(AsyncMemory.add_documents)
    add_file = blocking(AsyncMemory.add_file)
    search = blocking(AsyncMemory.search)
    search_with_documents = blocking(AsyncMemory.search_with_documents)
    search_statement = blocking(AsyncMemory.search_statement)
    list_documents = blocking(AsyncMemory.list_documents)
    get_document = blocking(AsyncMemory.get_document)
    update_document = blocking(AsyncMemory.update_document)
    delete_document = blocking(AsyncMemory.delete_document)
    delete_documents = blocking(AsyncMemory.delete_documents)
    delete_statement = blocking(AsyncMemory.delete_statement)
    delete_owner = blocking(AsyncMemory.delete_owner)
    get_statistics = blocking(AsyncMemory.get_statistics)
    process_pending_embeddings = blocking(AsyncMemory.process_pending_embeddings)
    run_worker = blocking(AsyncMemory.run_worker)
    list_jobs = blocking(AsyncMemory.list_jobs)
    requeue_jobs = blocking(AsyncMemory.requeue_jobs)
    maintain = blocking(AsyncMemory.maintain)
    health = blocking(AsyncMemory.health)
    reembed = blocking(AsyncMemory.reembed)
    list_spaces = blocking(AsyncMemory.list_spaces)
    drop_space = blocking(AsyncMemory.drop_space)

    def close(self) -> None:
        """Close the connections that this memory opened. Later calls raise ClosedError."""
        self._is_closed = True
        if self._finalizer.detach() is not None:
            _close_core(self._inner, self._pid)

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _core(self) -> AsyncMemory:
        """Return the asynchronous memory of this process: a fork gets one of its own."""
        if self._is_closed:
            raise ClosedError("This memory is closed; make a new one.")
        if self._pid != os.getpid():
            if self._brings_engine:
                raise ConfigurationError(
                    "This memory uses an engine that was made before the fork, whose connections "
                    "belong to the parent process. Make the engine and the memory in the worker, "
                    "or pass a connection string."
                )
            with _renewing:
                if self._pid != os.getpid():
                    self._renew()
        return self._inner

    def _renew(self) -> None:
        # An embedder that the settings made may hold what belongs to the parent.
        given = self.embedder if self._inner.embedder is not self._inner._own_embedder else None
        core = AsyncMemory(
            schema=self.schema,
            embedder=given,
            settings=self.settings,
            chunk_context=self._chunk_context,
        )
        _cores.add(core)
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _close_core, core, os.getpid())
        self._inner = core
        # Last: other threads take the core once this is right.
        self._pid = os.getpid()

    def _call(self, function: Callable[[], Coroutine[Any, Any, R]]) -> R:
        return bridge().call(function)


_cores: weakref.WeakSet[AsyncMemory] = weakref.WeakSet()
_renewing = ProcessLock()


def _keep_inherited() -> None:
    # The connections belong to the parent: were they collected here, they would complain that
    # nobody closed them. One reference too many keeps them from it.
    for core in list(_cores):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
    _cores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


def _close_core(core: AsyncMemory, pid: int) -> None:
    if pid != os.getpid():
        return
    try:
        running: Bridge = bridge()
    except ClosedError:
        return
    running.call_or_begin(core.close)
