"""The HNSW indexes of large owners: their names, and the statements that make and find them.

An index holds one owner's vectors of one space. Its name says which, so that nobody needs to read
the conditions of an index back.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from pgvector.sqlalchemy import BIT, HALFVEC
from sqlalchemy import ColumnElement, Index, MetaData, Table, and_, cast, func, text
from sqlalchemy.schema import CreateIndex, DropIndex

from llmemory.models import HNSW_PREFIX, Tables

__all__ = [
    "HALFVEC_DIMENSIONS",
    "LIST_INDEXES",
    "Held",
    "create_index",
    "drop_index",
    "index_name",
    "quantized",
    "space_of",
]

Held: TypeAlias = Literal["halves", "signs"]
"""What an index holds: vectors in half precision, or the signs of their components."""

HALFVEC_DIMENSIONS = 4000
"""The longest vectors that an HNSW index holds in half precision."""

LIST_INDEXES = text(
    "SELECT c.relname AS name, i.indisvalid AS is_valid, c.reltuples AS vectors "
    "FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid "
    "WHERE i.indrelid = to_regclass(:indexed_table) "
    f"AND starts_with(c.relname::text, '{HNSW_PREFIX}')"
)
"""Binds ``indexed_table``, the quoted name of the embeddings; served by pg_index's own index."""


@lru_cache(maxsize=4096)
def index_name(owner_id: str, space_id: int, holds: Held) -> str:
    """Return the name of the index on an owner's vectors of a space: at most 63 bytes."""
    digest = blake2b(owner_id.encode(), digest_size=16).hexdigest()
    return f"{HNSW_PREFIX}{holds}_{space_id}_{digest}"


def space_of(name: str) -> int:
    """Return the space whose vectors the index of this name holds."""
    return int(name.rsplit("_", 2)[1])


def quantized(vector: ColumnElement[Any], dimensions: int) -> ColumnElement[Any]:
    """Return the signs of a vector's components, a bit each."""
    return cast(func.binary_quantize(vector), BIT(dimensions))


def create_index(
    tables: Tables,
    owner_id: str,
    space_id: int,
    *,
    dimensions: int,
    holds: Held,
    m: int,
    ef_construction: int,
) -> CreateIndex:
    """Return CREATE INDEX CONCURRENTLY for an owner's vectors of a space.

    Its expression and conditions are those of the search, or no search could use it.
    """
    # A copy, which the index belongs to: those of owners are no part of the models.
    embeddings = _detached(tables)
    indexed: ColumnElement[Any] = cast(embeddings.c.embedding, HALFVEC(dimensions))
    if holds == "signs":
        indexed = quantized(indexed, dimensions)
    index = Index(
        index_name(owner_id, space_id, holds),
        indexed.label("indexed"),
        postgresql_using="hnsw",
        postgresql_ops={"indexed": "bit_hamming_ops" if holds == "signs" else "halfvec_cosine_ops"},
        postgresql_with={"m": m, "ef_construction": ef_construction},
        postgresql_where=and_(embeddings.c.space_id == space_id, embeddings.c.owner_id == owner_id),
        postgresql_concurrently=True,
    )
    return CreateIndex(index)


def drop_index(tables: Tables, name: str) -> DropIndex:
    """Return DROP INDEX CONCURRENTLY; nothing happens if it is gone."""
    embeddings = _detached(tables)
    index = Index(name, embeddings.c.owner_id, postgresql_concurrently=True)
    return DropIndex(index, if_exists=True)


def _detached(tables: Tables) -> Table:
    return tables.embeddings.to_metadata(MetaData())
