"""The tables, as SQLAlchemy declarative models.

``owner_id`` is the first column of every key, so that the same tables can be distributed by it;
keys are made by the client. The tables are made by the Alembic revisions, never by ``create_all``.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = [
    "DEFAULT_SCHEMA",
    "HNSW_PREFIX",
    "LEXICAL_DIMENSIONS",
    "VERSION_TABLE",
    "Base",
    "Chunk",
    "Document",
    "Embedding",
    "EmbeddingJob",
    "EmbeddingSpace",
    "LexicalStatistics",
    "Tables",
    "quoted_identifier",
    "tables_for",
]

DEFAULT_SCHEMA = "llmemory"
VERSION_TABLE = "llmemory_version"
HNSW_PREFIX = "hnsw_"
LEXICAL_DIMENSIONS = 1_000_000_000

_COMPUTED = {
    "terms": "{schema}.lexical_terms(owner_id, {schema}.search_vector(language, content))",
    "lexical": "{schema}.lexical_weights({schema}.search_vector(language, content))",
}


class Base(DeclarativeBase):
    """The declarative base; its metadata names every constraint and index."""

    metadata = MetaData(
        schema=DEFAULT_SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
        },
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[str]: ARRAY(Text()),
    }


class Document(Base):
    """A document of an owner. ``external_id`` is what re-adding replaces by."""

    __tablename__ = "documents"
    __table_args__ = (
        UniqueConstraint("owner_id", "external_id"),
        Index(None, "owner_id", "id_at_origin"),
        Index(None, "owner_id", "document_date"),
        Index(None, "owner_id", "language"),
        Index(
            "ix_documents_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
    )

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    document_id: Mapped[UUID] = mapped_column(primary_key=True)
    external_id: Mapped[str | None]
    id_at_origin: Mapped[str | None]
    document_name: Mapped[str]
    document_type: Mapped[str]
    document_date: Mapped[datetime | None]
    language: Mapped[str]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    content_hash: Mapped[bytes] = mapped_column(LargeBinary)
    content: Mapped[str]
    chunk_count: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    chunks: Mapped[list[Chunk]] = relationship(
        back_populates="document",
        order_by="Chunk.position",
        cascade="all, delete-orphan",
        passive_deletes=True,
    )


class Chunk(Base):
    """A passage of a document, with what searching its words needs."""

    __tablename__ = "chunks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["owner_id", "document_id"],
            [Document.owner_id, Document.document_id],
            ondelete="CASCADE",
        ),
        Index(None, "owner_id", "document_id", "position"),
        Index(
            "ix_chunks_terms",
            "terms",
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": 256},
        ),
    )

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    chunk_id: Mapped[UUID] = mapped_column(primary_key=True)
    document_id: Mapped[UUID]
    position: Mapped[int] = mapped_column(Integer)
    headings: Mapped[list[str]]
    content: Mapped[str]
    content_hash: Mapped[bytes] = mapped_column(LargeBinary)
    start_offset: Mapped[int] = mapped_column(Integer)
    end_offset: Mapped[int] = mapped_column(Integer)
    token_count: Mapped[int] = mapped_column(Integer)
    language: Mapped[str]
    # Hashes of owner and lexeme, so that an owner's words have postings of their own.
    terms: Mapped[Any] = mapped_column(
        ARRAY(BigInteger),
        Computed(_COMPUTED["terms"].format(schema=DEFAULT_SCHEMA), persisted=True),
        nullable=True,
    )
    lexical: Mapped[Any] = mapped_column(
        SPARSEVEC(LEXICAL_DIMENSIONS),
        Computed(_COMPUTED["lexical"].format(schema=DEFAULT_SCHEMA), persisted=True),
        nullable=True,
    )

    document: Mapped[Document] = relationship(back_populates="chunks")
    embeddings: Mapped[list[Embedding]] = relationship(
        back_populates="chunk", cascade="all, delete-orphan", passive_deletes=True
    )


class Embedding(Base):
    """A chunk's vector in one embedding space."""

    __tablename__ = "embeddings"
    __table_args__ = (
        ForeignKeyConstraint(
            ["owner_id", "chunk_id"], [Chunk.owner_id, Chunk.chunk_id], ondelete="CASCADE"
        ),
    )

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    chunk_id: Mapped[UUID] = mapped_column(primary_key=True)
    space_id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    # No dimension, so that spaces of different length share the table.
    embedding: Mapped[Any] = mapped_column(HALFVEC())

    chunk: Mapped[Chunk] = relationship(back_populates="embeddings")


class EmbeddingSpace(Base):
    """A model whose vectors are stored. The one table without an owner."""

    __tablename__ = "embedding_spaces"
    __table_args__ = (
        UniqueConstraint("provider", "model", "dimensions"),
        Index(
            "uq_embedding_spaces_is_default",
            "is_default",
            unique=True,
            postgresql_where=text("is_default"),
        ),
        CheckConstraint("state IN ('filling', 'ready')", name="state"),
    )

    space_id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    provider: Mapped[str]
    model: Mapped[str]
    dimensions: Mapped[int] = mapped_column(Integer)
    state: Mapped[str]
    is_default: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]


class EmbeddingJob(Base):
    """A document whose chunks wait for their vectors in one space."""

    __tablename__ = "embedding_jobs"
    __table_args__ = (
        ForeignKeyConstraint(
            ["owner_id", "document_id"],
            [Document.owner_id, Document.document_id],
            ondelete="CASCADE",
        ),
        UniqueConstraint("owner_id", "document_id", "space_id"),
        Index(None, "owner_id", "state", "available_at"),
        CheckConstraint("state IN ('queued', 'failed')", name="state"),
    )

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    document_id: Mapped[UUID]
    space_id: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[str]
    attempts: Mapped[int] = mapped_column(Integer)
    available_at: Mapped[datetime]
    leased_until: Mapped[datetime | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime]


class LexicalStatistics(Base):
    """How many of a large owner's chunks hold a common term; term 0 stands for all chunks.

    Searches count what is missing here, so rows are an aid to speed, never needed for a result.
    """

    __tablename__ = "lexical_statistics"

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    chunk_count: Mapped[int] = mapped_column(BigInteger)
    counted_at: Mapped[datetime]


class Tables(NamedTuple):
    """The tables of one concrete schema, for statements outside the ORM."""

    schema: str
    documents: Table
    chunks: Table
    embeddings: Table
    embedding_spaces: Table
    embedding_jobs: Table
    lexical_statistics: Table

    @property
    def metadata(self) -> MetaData:
        """The metadata that holds these tables and no others."""
        return self.documents.metadata


def quoted_identifier(name: str) -> str:
    """Return `name` as SQL text; the dialect's own quoting would double ``%`` as well."""
    return '"' + name.replace('"', '""') + '"'


@lru_cache(maxsize=1024)
def tables_for(schema: str) -> Tables:
    """Return the tables of `schema`; those of the default schema are the models' own."""
    if schema == DEFAULT_SCHEMA:
        metadata = Base.metadata
    else:
        metadata = MetaData(naming_convention=Base.metadata.naming_convention)
        for table in Base.metadata.sorted_tables:
            table.to_metadata(metadata, schema=schema)
        # A colon would read as a bound parameter of text().
        quoted = quoted_identifier(schema).replace(":", r"\:")
        columns = metadata.tables[f"{schema}.chunks"].columns
        for name, expression in _COMPUTED.items():
            computed = columns[name].computed
            assert computed is not None
            computed.sqltext = text(expression.format(schema=quoted))
    return Tables(
        schema,
        *(metadata.tables[f"{schema}.{name}"] for name in Tables._fields[1:]),
    )
