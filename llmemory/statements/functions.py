"""Calls of the functions that the migrations create in a schema, and what they made of words."""

from __future__ import annotations

from typing import Any, TypeVar

from pgvector.sqlalchemy import SPARSEVEC
from sqlalchemy import BigInteger, ColumnElement, FromClause
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from llmemory.constructs import Field, SchemaFunction
from llmemory.models import LEXICAL_DIMENSIONS, Tables

__all__ = ["lexical_of", "schema_function", "terms_of"]

T = TypeVar("T")


def schema_function(
    tables: Tables,
    name: str,
    *arguments: ColumnElement[Any],
    type_: TypeEngine[T] | type[TypeEngine[T]],
) -> SchemaFunction[T]:
    """Return a call of the function `name` in the schema of `tables`."""
    return SchemaFunction(tables.chunks, name, *arguments, type_=type_)


def terms_of(chunks: FromClause) -> Field[Any]:
    """Return the keys of the chunks' terms; served by ``ix_chunks_terms``."""
    return Field(chunks.c.words, "terms", ARRAY(BigInteger))


def lexical_of(chunks: FromClause) -> Field[Any]:
    """Return the weights of the chunks' terms, as a sparse vector."""
    return Field(chunks.c.words, "lexical", SPARSEVEC(LEXICAL_DIMENSIONS))
