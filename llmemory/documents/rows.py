"""Plans as what statements and COPY take: arrays, JSON objects and binary rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from llmemory.database import binary_copy
from llmemory.documents.ingestion import DocumentPlan, token_estimate
from llmemory.statements.parameters import arrays
from llmemory.types import HalfVectors
from llmemory.validation.documents import CheckedDocument

__all__ = [
    "CHUNK_COLUMNS",
    "VECTOR_COLUMNS",
    "by_owner",
    "chunk_rows",
    "chunk_values",
    "document_arrays",
    "ids_to_embed",
    "is_long",
    "moves",
    "vector_values",
]

CHUNK_COLUMNS = (
    "owner_id",
    "chunk_id",
    "document_id",
    "position",
    "headings",
    "content",
    "content_hash",
    "start_offset",
    "end_offset",
    "token_count",
    "language",
)
VECTOR_COLUMNS = ("owner_id", "chunk_id", "space_id", "embedding")
LONG_CHARACTERS = 1_000_000


def by_owner(plans: Iterable[DocumentPlan]) -> list[tuple[str, list[DocumentPlan]]]:
    """Group plans by owner: a statement is about one owner."""
    groups: defaultdict[str, list[DocumentPlan]] = defaultdict(list)
    for plan in plans:
        groups[plan.document.owner_id].append(plan)
    return sorted(groups.items())


def document_arrays(plans: Sequence[DocumentPlan], now: datetime) -> dict[str, Any]:
    """Return an array for each column of documents of one owner, long contents left out."""
    documents = [plan.document for plan in plans]
    return arrays(
        document_id=[plan.document_id for plan in plans],
        external_id=[document.external_id for document in documents],
        id_at_origin=[document.id_at_origin for document in documents],
        document_name=[document.document_name for document in documents],
        document_type=[document.document_type.value for document in documents],
        document_date=[document.document_date for document in documents],
        language=[document.language for document in documents],
        metadata=[json.dumps(document.metadata) for document in documents],
        content_hash=[document.content_hash for document in documents],
        content=["" if is_long(document) else document.content for document in documents],
        chunk_count=[plan.chunk_count for plan in plans],
        updated_at=[now] * len(plans),
    )


def is_long(document: CheckedDocument) -> bool:
    """Return whether the content travels by itself: drivers copy an array several times over."""
    return len(document.content) > LONG_CHARACTERS


def ids_to_embed(plan: DocumentPlan) -> bytes:
    """Return the ids of the chunks that want vectors, 16 bytes each."""
    import numpy as np

    if plan.chunks is None:
        return b""
    wanting = np.frombuffer(plan.chunks.want_vectors, dtype=np.bool_)
    return np.frombuffer(plan.chunks.ids, dtype="V16")[wanting].tobytes()


def moves(plans: Iterable[DocumentPlan]) -> Iterator[str]:
    """Yield where each kept chunk belongs, as JSON objects."""
    for plan in plans:
        if (chunks := plan.chunks) is None:
            continue
        for position, is_stored in enumerate(chunks.are_stored):
            if is_stored:
                yield (
                    f'{{"chunk_id": "{chunks.id_of(position).hex()}", "position": {position}, '
                    f'"start_offset": {chunks.starts[position]}, '
                    f'"end_offset": {chunks.ends[position]}, '
                    f'"headings": {chunks.headings_json(position)}}}'
                )


def chunk_values(plans: Iterable[DocumentPlan]) -> Iterator[dict[str, Any]]:
    """Yield the new chunks as values by column, for a few of them."""
    for plan in plans:
        if (chunks := plan.chunks) is None:
            continue
        for position, is_stored in enumerate(chunks.are_stored):
            if is_stored:
                continue
            content = plan.content_of(position)
            values = (
                plan.document.owner_id,
                UUID(bytes=chunks.id_of(position)),
                plan.document_id,
                position,
                list(chunks.headings_of(position)),
                content,
                chunks.hash_of(position),
                chunks.starts[position],
                chunks.ends[position],
                token_estimate(content.encode()),
                plan.document.language,
            )
            yield dict(zip(CHUNK_COLUMNS, values, strict=True))


def vector_values(
    space_id: int, vectors: HalfVectors, groups: Iterable[binary_copy.VectorGroup]
) -> Iterator[dict[str, Any]]:
    """Yield vectors as values by column, for a few of them."""
    for group in groups:
        for number, row in enumerate(group.rows):
            chunk_id = group.chunk_ids[16 * number : 16 * (number + 1)]
            values = (group.owner_id, UUID(bytes=chunk_id), space_id, vectors[row])
            yield dict(zip(VECTOR_COLUMNS, values, strict=True))


def chunk_rows(plans: Iterable[DocumentPlan]) -> Iterator[tuple[bytes, ...]]:
    """Yield the new chunks as rows of `CHUNK_COLUMNS` for a binary COPY."""
    for plan in plans:
        if (chunks := plan.chunks) is None:
            continue
        owner_id = binary_copy.text(plan.document.owner_id)
        document_id = binary_copy.raw(plan.document_id.bytes)
        language = binary_copy.text(plan.document.language)
        for position, is_stored in enumerate(chunks.are_stored):
            if is_stored:
                continue
            content = plan.content_of(position).encode()
            yield (
                owner_id,
                binary_copy.raw(chunks.id_of(position)),
                document_id,
                binary_copy.integer(position),
                binary_copy.text_array(chunks.headings_of(position)),
                binary_copy.raw(content),
                binary_copy.raw(chunks.hash_of(position)),
                binary_copy.integer(chunks.starts[position]),
                binary_copy.integer(chunks.ends[position]),
                binary_copy.integer(token_estimate(content)),
                language,
            )
