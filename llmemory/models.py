"""The tables, as SQLAlchemy declarative models.

``owner_id`` is the first column of every key, so that the same tables can be distributed by it;
keys are made by the client. The tables are made by the Alembic revisions, never by ``create_all``.

Nothing is loaded by being looked at: a query says with loader options what it wants, and else
``InvalidRequestError`` is raised, under async and sync sessions alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ColumnElement,
    Computed,
    Connection,
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
    cast,
    event,
    func,
    inspect,
    literal,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, array
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.ext.hybrid import hybrid_method
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship

from llmemory.constructs import AnalysedWords, Field, HalfVector, SchemaFunction, quoted_identifier

__all__ = [
    "DEFAULT_SCHEMA",
    "HNSW_PREFIX",
    "LEXICAL_DIMENSIONS",
    "LEXICAL_UNITS",
    "VERSION_TABLE",
    "Base",
    "Chunk",
    "Document",
    "Embedding",
    "EmbeddingJob",
    "EmbeddingSpace",
    "LexicalStatistics",
    "Tables",
    "owned_metadata",
    "quoted_identifier",
    "tables_for",
]

DEFAULT_SCHEMA = "llmemory"
VERSION_TABLE = "llmemory_version"
HNSW_PREFIX = "hnsw_"
LEXICAL_DIMENSIONS = 1_000_000_000
LEXICAL_UNITS = 100_000
"""Of these the weights of a chunk are whole numbers."""

_WORDS = "{schema}.analysed_words(owner_id, {schema}.search_vector(language, content))"


# What the foreign keys delete is not loaded to be deleted.
_OWNED: dict[str, Any] = {
    "cascade": "all, delete-orphan",
    "passive_deletes": True,
    "lazy": "raise_on_sql",
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
        Index(None, "owner_id", "document_type"),
        Index(None, "owner_id", "document_date"),
        Index(None, "owner_id", "language"),
        # As owned_metadata() has it: below their owner.
        Index(
            "ix_documents_owner_id_metadata",
            literal_column("jsonb_set('{}'::jsonb, ARRAY[owner_id], metadata)").label("owned"),
            postgresql_using="gin",
            postgresql_ops={"owned": "jsonb_path_ops"},
            postgresql_with={"gin_pending_list_limit": 256},
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
    # The version as well: a flush on top of somebody else's change raises StaleDataError.
    updated_at: Mapped[datetime] = mapped_column()

    chunks: Mapped[list[Chunk]] = relationship(
        back_populates="document", order_by="Chunk.position", **_OWNED
    )
    jobs: Mapped[list[EmbeddingJob]] = relationship(back_populates="document", **_OWNED)

    __mapper_args__ = {  # noqa: RUF012
        "version_id_col": updated_at,
        "version_id_generator": False,
    }


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
            text("((words).terms)"),
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
    # Both of what follows in one, as a generated column cannot read another: the text is analysed
    # once.
    words: Mapped[Any] = mapped_column(
        AnalysedWords(),
        Computed(_WORDS.format(schema=DEFAULT_SCHEMA), persisted=True),
        nullable=True,
        deferred=True,
        deferred_raiseload=True,
    )
    # Hashes of owner and lexeme, so that an owner's words have postings of their own.
    terms: Mapped[Any] = column_property(
        Field(words, "terms", ARRAY(BigInteger)), deferred=True, raiseload=True
    )
    lexical: Mapped[Any] = column_property(
        Field(words, "lexical", SPARSEVEC(LEXICAL_DIMENSIONS)), deferred=True, raiseload=True
    )

    document: Mapped[Document] = relationship(back_populates="chunks", lazy="raise_on_sql")
    embeddings: Mapped[list[Embedding]] = relationship(back_populates="chunk", **_OWNED)

    # What the server computes is much, and of use to searches only.
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012

    @hybrid_method
    def matches(
        self, query: str, *, owner_id: str | None = None, language: str | None = None
    ) -> bool:
        """Return, in a statement, whether a chunk has any of the words of `query`.

        They are compared as searches compare them, in all their forms.

        Args:
            query: Words; those that a language leaves out, such as "the", find nothing.
            owner_id: Whose chunks. Given this and `language`, the index of words serves it; else
                each chunk is looked at.
            language: Language of the query. None takes each chunk's own.
        """
        if isinstance(self, Chunk):
            raise TypeError("PostgreSQL knows the forms of words: use Chunk.matches in a query.")
        return _matches(self, query, owner_id, language)


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
    embedding: Mapped[Any] = mapped_column(HalfVector())

    chunk: Mapped[Chunk] = relationship(back_populates="embeddings", lazy="raise_on_sql")

    @hybrid_method
    def distance_to(self, vector: Sequence[float]) -> float:
        """Return the cosine distance to `vector`, 0 to 2; NaN where one of them is all zeros.

        In a statement it is an expression. Restrict that to one space, for vectors of different
        length cannot be compared.

        Args:
            vector: A list or a NumPy array, shape ``(dimensions,)``.
        """
        if not isinstance(self, Embedding):
            return _distance(self, vector)
        import numpy as np

        ours, theirs = np.array(_numbers(self.embedding)), np.array(_numbers(vector))
        norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
        return 1 - float(ours @ theirs) / norm if norm else float("nan")


class EmbeddingSpace(Base):
    """A model whose vectors are stored. The one table without an owner.

    A row stays when its vectors are dropped: its number never comes to mean another model.
    """

    __tablename__ = "embedding_spaces"
    __table_args__ = (
        UniqueConstraint("provider", "model", "dimensions"),
        Index(
            "uq_embedding_spaces_is_default",
            "is_default",
            unique=True,
            postgresql_where=text("is_default"),
        ),
        CheckConstraint("state IN ('filling', 'ready', 'refilling', 'dropped')", name="state"),
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

    document: Mapped[Document] = relationship(back_populates="jobs", lazy="raise_on_sql")

    # Finished by a worker in the meantime, it is gone already.
    __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012


class LexicalStatistics(Base):
    """How many of a large owner's chunks hold a common term; term 0 stands for all chunks.

    Searches count what is missing here, so rows are an aid to speed, never needed for a result.
    """

    __tablename__ = "lexical_statistics"

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    chunk_count: Mapped[int] = mapped_column(BigInteger)
    counted_at: Mapped[datetime]


def _matches(chunk: Any, query: str, owner_id: str | None, language: str | None) -> Any:
    table: Any = Chunk.__table__
    in_language = chunk.language if language is None else literal(language, Text)
    of_owner = chunk.owner_id if owner_id is None else literal(owner_id, Text)
    words = SchemaFunction(
        table, "search_vector", in_language, literal(query, Text), type_=TSVECTOR
    )
    keys = SchemaFunction(table, "lexical_terms", of_owner, words, type_=ARRAY(BigInteger))
    return chunk.terms.overlap(keys)


def owned_metadata(documents: Any) -> ColumnElement[Any]:
    """Return metadata below their owner, as ``ix_documents_owner_id_metadata`` has them.

    So the index has postings of each owner's own: what others have takes no time.
    """
    path = array([documents.c.owner_id])
    nothing: ColumnElement[Any] = literal_column("'{}'::jsonb", JSONB)
    return func.jsonb_set(nothing, path, documents.c.metadata, type_=JSONB)


def _distance(embedding: Any, vector: Sequence[float]) -> Any:
    numbers = _numbers(vector)
    # Cast as the indexes of large owners are, which can serve it then.
    halves = cast(embedding.embedding, HALFVEC(len(numbers)))
    return halves.cosine_distance(literal(numbers, HalfVector(len(numbers))))


def _numbers(vector: Any) -> list[float]:
    # As older releases of pgvector give it, a vector is no sequence.
    return list(map(float, vector.to_list() if hasattr(vector, "to_list") else vector))


@event.listens_for(Document, "before_update")
def _date(mapper: Any, connection: Connection, document: Document) -> None:
    # Not by the column's onupdate, which statements of the library would have too.
    state: Any = inspect(document)
    if state.session.is_modified(document) and not state.attrs.updated_at.history.has_changes():
        document.updated_at = datetime.now(UTC)


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
        computed = metadata.tables[f"{schema}.chunks"].columns["words"].computed
        assert computed is not None
        computed.sqltext = text(_WORDS.format(schema=quoted))
    # As PostgreSQL may write the type's name; SQLAlchemy would warn of one that it does not know.
    for name in (schema, quoted_identifier(schema)):
        ischema_names[f"{name}.analysed_words".lower()] = AnalysedWords
    return Tables(
        schema,
        *(metadata.tables[f"{schema}.{name}"] for name in Tables._fields[1:]),
    )
