"""Grouping hits by document. Pure; the fusion of the arms happens in the search statement."""

from __future__ import annotations

from collections.abc import Sequence

from llmemory.types import DocumentHits, Passage, SearchResult, SearchResultWithDocuments

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
    for hits in documents.values():
        hits.passages = _passages(hits.results)
    return SearchResultWithDocuments(results=list(results), documents=list(documents.values()))


def _passages(hits: Sequence[SearchResult]) -> list[Passage]:
    """Return the text of one document's hits in its order, each stretch of it once."""
    passages: list[Passage] = []
    for found in sorted(map(_passage, hits), key=lambda passage: passage.start):
        last = passages[-1] if passages else None
        if last is None or found.start > last.end:
            passages.append(found)
            continue
        last.content += found.content[last.end - found.start :]
        last.end = max(last.end, found.end)
        last.score = max(last.score, found.score)
    return passages


def _passage(hit: SearchResult) -> Passage:
    if hit.context is None or hit.context_start is None or hit.context_end is None:
        return Passage(content=hit.content, start=hit.start, end=hit.end, score=hit.score)
    return Passage(
        content=hit.context, start=hit.context_start, end=hit.context_end, score=hit.score
    )
