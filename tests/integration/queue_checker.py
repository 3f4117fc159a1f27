"""What holds for the queue at any time, whoever was killed: checked over the tables themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from integration.helpers import broken_documents, fetch

from llmemory import Embedder


async def queue_problems(
    url: str, embedder: Embedder, *, space_id: int = 1, failed: int = 0
) -> list[str]:
    """Return what is wrong: nothing, if each chunk has one vector of its text or a job to make it.

    Args:
        url: Whose schema ``llmemory`` to look at.
        embedder: What makes the vector that a text must have.
        space_id: Space of the vectors.
        failed: How many documents are expected to have been given up.
    """
    problems = [f"not whole: {row}" for row in broken_documents(url, space_id)]
    lost = fetch(
        url,
        """
        SELECT c.owner_id, c.chunk_id FROM llmemory.chunks AS c
        WHERE NOT EXISTS (
            SELECT FROM llmemory.embeddings AS e
            WHERE (e.owner_id, e.chunk_id, e.space_id) = (c.owner_id, c.chunk_id, %s)
        ) AND NOT EXISTS (
            SELECT FROM llmemory.embedding_jobs AS j
            WHERE (j.owner_id, j.document_id, j.space_id) = (c.owner_id, c.document_id, %s)
        )
        """,
        space_id,
        space_id,
    )
    problems += [f"neither vector nor job: {row}" for row in lost]
    orphans = fetch(
        url,
        """
        SELECT 'vector', e.owner_id, e.chunk_id FROM llmemory.embeddings AS e
        LEFT JOIN llmemory.chunks AS c USING (owner_id, chunk_id)
        LEFT JOIN llmemory.documents AS d USING (owner_id, document_id)
        WHERE d.document_id IS NULL
        UNION ALL
        SELECT 'job', j.owner_id, j.document_id FROM llmemory.embedding_jobs AS j
        LEFT JOIN llmemory.documents AS d USING (owner_id, document_id)
        WHERE d.document_id IS NULL
        """,
    )
    problems += [f"of no document: {row}" for row in orphans]
    ((given_up,),) = fetch(
        url, "SELECT count(*) FROM llmemory.embedding_jobs WHERE state = 'failed'"
    )
    if given_up != failed:
        problems.append(f"{given_up} documents were given up")
    return problems + await _wrong_vectors(url, embedder, space_id)


async def _wrong_vectors(url: str, embedder: Embedder, space_id: int) -> list[str]:
    stored: list[tuple[Any, ...]] = fetch(
        url,
        """
        SELECT c.chunk_id, c.content, e.embedding::real[]
        FROM llmemory.chunks AS c JOIN llmemory.embeddings AS e USING (owner_id, chunk_id)
        WHERE e.space_id = %s
        """,
        space_id,
    )
    if not stored:
        return []
    expected = await embedder.embed([row[1] for row in stored], purpose="document")
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = np.array([row[2] for row in stored])
    wrong = np.abs(found - expected).max(axis=1) > 1e-3
    return [
        f"the vector of another text: {row[0]}"
        for row, is_wrong in zip(stored, wrong, strict=True)
        if is_wrong
    ]


async def drained(url: str, embedder: Embedder) -> bool:
    """Return whether nothing is left to do."""
    ((left,),) = fetch(url, "SELECT count(*) FROM llmemory.embedding_jobs WHERE state = 'queued'")
    return not left
