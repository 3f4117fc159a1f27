"""A document memory in your PostgreSQL: add documents for an owner, search them.

``AsyncMemory`` is for asyncio applications.
"""

from __future__ import annotations

from llmemory.core import AsyncMemory
from llmemory.embedding import Embedder
from llmemory.embedding.static import StaticEmbedder
from llmemory.embedding.testing import HashEmbedder
from llmemory.errors import (
    ClosedError,
    ConfigurationError,
    ConflictError,
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
    ValidationError,
)
from llmemory.settings import Settings
from llmemory.types import (
    Document,
    DocumentAddResult,
    DocumentHits,
    DocumentListResult,
    DocumentType,
    Health,
    NewDocument,
    OwnerStatistics,
    Progress,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncMemory",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
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
    "ExtensionMissing",
    "HashEmbedder",
    "Health",
    "LLMemoryError",
    "NewDocument",
    "OwnerStatistics",
    "Progress",
    "ProviderRejected",
    "ProviderUnavailable",
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
    "ValidationError",
]
