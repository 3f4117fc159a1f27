"""Grouping hits by document. Pure; the fusion of the arms happens in the search statement."""

from __future__ import annotations

from collections.abc import Sequence

from llmemory.types import DocumentHits, SearchResult, SearchResultWithDocuments

__all__ = ["grouped"]


def grouped(results: Sequence[SearchResult]) -> SearchResultWithDocuments:
    """Return hits with the same hits by document, the document of the best hit first."""
    documents: dict[str, DocumentHits] = {}
    for result in results:
        hits = documents.get(result.document_id)
        if hits is None:
            documents[result.document_id] = DocumentHits(
                document_id=result.document_id,
                document_name=result.document_name,
                document_type=result.document_type,
                metadata=result.metadata,
                score=result.score,
                results=[result],
            )
        else:
            hits.results.append(result)
    return SearchResultWithDocuments(results=list(results), documents=list(documents.values()))
