"""``AsyncMemory``: the library's use cases, a module for each kind of them."""

from __future__ import annotations

from llmemory.core.adding import Adding
from llmemory.core.documents import StoredDocuments
from llmemory.core.searching import Searching
from llmemory.core.spaces import Spaces
from llmemory.core.upkeep import Upkeep

__all__ = ["AsyncMemory"]


class AsyncMemory(Adding, Searching, StoredDocuments, Upkeep, Spaces):
    """A memory of documents in PostgreSQL, for asyncio applications.

    Every document belongs to an owner, and every search is within one owner. The memory connects,
    migrates its schema and checks it at the first call that needs the database, or when
    ``initialize`` is called. It may be used from several event loops.

    Args:
        connection_string: ``postgresql://`` (asyncpg), ``postgresql+asyncpg://`` or
            ``postgresql+psycopg://``, with libpq's parameters; ``embedded://`` or
            ``embedded:///folder`` for the embedded server. None takes ``settings.database_url``,
            and the embedded server if that is empty too.
        engine: An engine of yours to use instead. ``close`` leaves it open.
        replica_engine: An engine of yours on a read replica, which searches ask, and the primary
            where it fails. ``close`` leaves it open. None takes ``settings.replica_url``, if any.
        schema: PostgreSQL schema of the tables, at most 63 bytes. None takes the settings'.
        openai_api_key: Key for OpenAI's embeddings, extra ``openai``; short for an embedder.
        embedder: What makes the vectors. None takes the one that the settings name.
        settings: All else. None reads the ``LLMEMORY_`` environment variables.
        chunk_context: A function, asynchronous or not, that returns what shall stand before a
            chunk for the embedder, given a ``ChunkToEmbed``: such as a language model's sentence
            on where in the document it belongs. None or "" adds nothing. It is called for chunks
            that are embedded only, several at once. None takes ``settings.chunk_context``.

    Raises:
        ConfigurationError: The arguments contradict each other, or no embedder is installed.

    Example:
        >>> async with AsyncMemory("postgresql://localhost/app") as memory:
        ...     await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        ...     hits = await memory.search("acme", "How much holiday do I get?")
    """
