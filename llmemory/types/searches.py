"""Searches: how to search, and what was found."""

from __future__ import annotations

import builtins
from typing import Any

from pydantic import Field

from llmemory.types.base import Choice, Timestamp, Value
from llmemory.types.documents import DocumentType


class SearchType(Choice):
    """How to search: by meaning, by words, or by both fused."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"


class SearchResult(Value):
    """A passage that was found.

    Attributes:
        score: 0 to 1, comparable within one search.
        headings: Markdown headings above the passage, outermost first.
        position: Number of the chunk within its document, from 0.
        start: Offset of its first character in the document's content.
        end: Offset behind its last character.
        similarity: Cosine similarity to the query, -1 to 1; None if the vector arm did not find it.
        lexical_score: BM25 score, 0 or more; None if the word arm did not find it.
        vector_rank: Rank in the vector arm, from 1.
        text_rank: Rank in the word arm, from 1.
        context: The passage with its neighbours, as the document has them; None unless
            ``context_window`` asked for it.
        context_start: Offset of the context's first character in the document's content.
        context_end: Offset behind its last character.
        highlight: The passage as HTML, the query's words in ``<mark>`` and all else escaped; None
            unless ``highlight`` asked for it.
    """

    chunk_id: str
    document_id: str
    document_name: str
    document_type: DocumentType
    content: str
    score: float
    metadata: builtins.dict[str, Any]
    id_at_origin: str | None
    external_id: str | None
    document_date: Timestamp | None
    headings: list[str]
    position: int
    start: int
    end: int
    similarity: float | None
    lexical_score: float | None
    vector_rank: int | None
    text_rank: int | None
    context: str | None = None
    context_start: int | None = None
    context_end: int | None = None
    highlight: str | None = None


class Passage(Value):
    """A stretch of a document that holds one or more hits, with what surrounds them.

    Attributes:
        content: The document's content from ``start`` to ``end``.
        start: Offset of its first character in the document's content.
        end: Offset behind its last character.
        score: Score of the best hit in it.
    """

    content: str
    start: int
    end: int
    score: float


class DocumentHits(Value):
    """The hits of one document.

    Attributes:
        score: Score of its best hit.
        results: Its hits, best first.
        passages: The same with their context, in the order of the document: hits that overlap or
            touch are one passage, so that no text is there twice.
    """

    document_id: str
    document_name: str
    document_type: DocumentType
    metadata: builtins.dict[str, Any]
    score: float
    results: list[SearchResult]
    passages: list[Passage] = Field(default_factory=list)


class SearchResultWithDocuments(Value):
    """Hits, and the same hits grouped by document.

    Attributes:
        results: All hits, best first.
        documents: One entry per document, the one with the best hit first.
    """

    results: list[SearchResult]
    documents: list[DocumentHits]
