"""A document memory in your PostgreSQL: add documents for an owner, search them.

``AsyncMemory`` is for asyncio applications, ``Memory`` for all others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmemory.core import AsyncMemory
from llmemory.embedding import Embedder
from llmemory.embedding.text import ChunkToEmbed
from llmemory.errors import (
    ClosedError,
    ConfigurationError,
    ConflictError,
    ContextFailed,
    DimensionMismatch,
    DocumentNotFoundError,
    EmbedderMismatchError,
    EmbeddingError,
    ExtensionMissing,
    LLMemoryError,
    ProviderRejected,
    ProviderUnavailable,
    SchemaError,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    StorageError,
    StorageUnavailable,
    TextsRefused,
    ValidationError,
)
from llmemory.guide import AwordMemory
from llmemory.memory import Memory
from llmemory.settings import Settings
from llmemory.types import (
    Document,
    DocumentAddResult,
    DocumentHits,
    DocumentListResult,
    DocumentType,
    EmbeddingJob,
    EmbeddingSpaceStatus,
    Health,
    MaintenanceProgress,
    MaintenanceResult,
    NewDocument,
    OwnerStatistics,
    Passage,
    Progress,
    QueueProgress,
    QueueStatistics,
    ReembedResult,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)

if TYPE_CHECKING:
    from llmemory.embedding.local import LocalEmbedder
    from llmemory.embedding.openai import OpenAIEmbedder
    from llmemory.embedding.static import StaticEmbedder
    from llmemory.embedding.testing import HashEmbedder

__version__ = "0.1.0"

__all__ = [
    "AsyncMemory",
    "AwordMemory",
    "ChunkToEmbed",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "ContextFailed",
    "DimensionMismatch",
    "Document",
    "DocumentAddResult",
    "DocumentHits",
    "DocumentListResult",
    "DocumentNotFoundError",
    "DocumentType",
    "Embedder",
    "EmbedderMismatchError",
    "EmbeddingError",
    "EmbeddingJob",
    "EmbeddingSpaceStatus",
    "ExtensionMissing",
    "HashEmbedder",
    "Health",
    "LLMemoryError",
    "LocalEmbedder",
    "MaintenanceProgress",
    "MaintenanceResult",
    "Memory",
    "NewDocument",
    "OpenAIEmbedder",
    "OwnerStatistics",
    "Passage",
    "Progress",
    "ProviderRejected",
    "ProviderUnavailable",
    "QueueProgress",
    "QueueStatistics",
    "ReembedResult",
    "SchemaError",
    "SchemaMissing",
    "SchemaOutOfDate",
    "SchemaTooNew",
    "SearchResult",
    "SearchResultWithDocuments",
    "SearchType",
    "Settings",
    "StaticEmbedder",
    "StorageError",
    "StorageUnavailable",
    "TextsRefused",
    "ValidationError",
]

_LAZY = {
    "HashEmbedder": "llmemory.embedding.testing",
    "LocalEmbedder": "llmemory.embedding.local",
    "OpenAIEmbedder": "llmemory.embedding.openai",
    "StaticEmbedder": "llmemory.embedding.static",
}


def __getattr__(name: str) -> Any:
    """Import an embedder when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
