"""What users pass in and get back: plain values, ready to be returned from a web endpoint."""

from llmemory.types.base import HalfVectors, Identifier, Moment, Timestamp, Vectors
from llmemory.types.documents import (
    Document,
    DocumentAddResult,
    DocumentListResult,
    DocumentType,
    NewDocument,
)
from llmemory.types.operations import (
    EmbeddingJob,
    EmbeddingSpaceStatus,
    Health,
    JobState,
    MaintenanceProgress,
    MaintenanceResult,
    OwnerStatistics,
    Progress,
    QueueProgress,
    QueueStatistics,
    ReembedResult,
    SpaceState,
)
from llmemory.types.searches import (
    DocumentHits,
    Passage,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)

__all__ = [
    "Document",
    "DocumentAddResult",
    "DocumentHits",
    "DocumentListResult",
    "DocumentType",
    "EmbeddingJob",
    "EmbeddingSpaceStatus",
    "HalfVectors",
    "Health",
    "Identifier",
    "JobState",
    "MaintenanceProgress",
    "MaintenanceResult",
    "Moment",
    "NewDocument",
    "OwnerStatistics",
    "Passage",
    "Progress",
    "QueueProgress",
    "QueueStatistics",
    "ReembedResult",
    "SearchResult",
    "SearchResultWithDocuments",
    "SearchType",
    "SpaceState",
    "Timestamp",
    "Vectors",
]
