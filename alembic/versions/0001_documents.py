"""Documents, chunks, embeddings and what searching and queueing need.

Locks: creates everything anew, so it waits for nothing.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = ("llmemory",)
depends_on = None

LANGUAGES = (
    "arabic armenian basque catalan danish dutch english finnish french german greek hindi "
    "hungarian indonesian irish italian lithuanian nepali norwegian portuguese romanian russian "
    "serbian spanish swedish tamil turkish yiddish"
).split()

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the functions and tables."""
    schema = op.get_context().version_table_schema or ""
    # The dialect's own quoting would double a percent sign as well.
    quoted = '"' + schema.replace('"', '""') + '"'
    create_functions(quoted)
    create_documents(schema)
    create_chunks(schema, quoted)
    create_embeddings(schema, quoted)
    create_embedding_jobs(schema)
    op.create_table(
        "lexical_statistics",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("lexeme", sa.Text(), nullable=False),
        sa.Column("chunk_count", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "lexeme", name=op.f("pk_lexical_statistics")),
        schema=schema,
    )


def create_functions(quoted: str) -> None:
    """Create what the generated columns compute; bodies are bound now, whatever search_path is."""
    cases = "\n".join(
        f"        WHEN '{name}' THEN to_tsvector('pg_catalog.{name}'::regconfig, content)"
        for name in LANGUAGES
    )
    execute(
        f"""
CREATE FUNCTION {quoted}.search_vector(language text, content text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE language
{cases}
        ELSE to_tsvector('pg_catalog.simple'::regconfig, content)
    END
"""
    )
    # BM25's weight of a term within a chunk, k1 = 1.2, b = 0.75 and an average length of 120, at
    # the position its hash gives. A sparsevec holds 16,000 of them: the heaviest are kept.
    execute(
        f"""
CREATE FUNCTION {quoted}.lexical_weights(terms tsvector) RETURNS sparsevec
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT ('{{' || coalesce(string_agg(position || ':' || weight::real, ','), '')
                || '}}/1000000000')::sparsevec
        FROM (
            SELECT position, sum(weight) AS weight
            FROM (
                SELECT (hashtextextended(lexeme COLLATE "C", 0) & 536870911) + 1 AS position,
                       2.2 * frequency
                       / (frequency + 0.3 + 0.9 * sum(frequency) OVER () / 120.0) AS weight
                FROM (
                    SELECT lexeme, coalesce(cardinality(positions), 1)::float8 AS frequency
                    FROM unnest(terms)
                ) AS counted
            ) AS weighted
            GROUP BY position
            ORDER BY 2 DESC
            LIMIT 16000
        ) AS positioned
    )
"""
    )


def create_documents(schema: str) -> None:
    """Create the documents table and its indexes."""
    op.create_table(
        "documents",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("id_at_origin", sa.Text(), nullable=True),
        sa.Column("document_name", sa.Text(), nullable=False),
        sa.Column("document_type", sa.Text(), nullable=False),
        sa.Column("document_date", TIMESTAMP, nullable=True),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "document_id", name=op.f("pk_documents")),
        sa.UniqueConstraint(
            "owner_id", "external_id", name=op.f("uq_documents_owner_id_external_id")
        ),
        schema=schema,
    )
    for column in ("id_at_origin", "document_date", "language"):
        op.create_index(
            op.f(f"ix_documents_owner_id_{column}"),
            "documents",
            ["owner_id", column],
            schema=schema,
        )
    op.create_index(
        op.f("ix_documents_metadata"),
        "documents",
        ["metadata"],
        schema=schema,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )


def create_chunks(schema: str, quoted: str) -> None:
    """Create the chunks table and its indexes."""
    computed = f"{quoted}.search_vector(language, content)".replace(":", r"\:")
    weights = f"{quoted}.lexical_weights".replace(":", r"\:")
    op.create_table(
        "chunks",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("chunk_id", sa.Uuid(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("headings", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("start_offset", sa.Integer(), nullable=False),
        sa.Column("end_offset", sa.Integer(), nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column(
            "search_vector",
            postgresql.TSVECTOR(),
            sa.Computed(computed, persisted=True),
            nullable=True,
        ),
        sa.Column(
            "lexical",
            SPARSEVEC(1_000_000_000),
            sa.Computed(f"{weights}({computed})", persisted=True),
            nullable=True,
        ),
        sa.PrimaryKeyConstraint("owner_id", "chunk_id", name=op.f("pk_chunks")),
        document_key("chunks", schema),
        schema=schema,
    )
    op.create_index(
        op.f("ix_chunks_owner_id_document_id_position"),
        "chunks",
        ["owner_id", "document_id", "position"],
        schema=schema,
    )
    op.create_index(
        op.f("ix_chunks_search_vector"),
        "chunks",
        ["search_vector"],
        schema=schema,
        postgresql_using="gin",
    )


def create_embeddings(schema: str, quoted: str) -> None:
    """Create the embeddings and the spaces they lie in."""
    op.create_table(
        "embedding_spaces",
        sa.Column("space_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("dimensions", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("space_id", name=op.f("pk_embedding_spaces")),
        sa.UniqueConstraint(
            "provider",
            "model",
            "dimensions",
            name=op.f("uq_embedding_spaces_provider_model_dimensions"),
        ),
        sa.CheckConstraint("state IN ('filling', 'ready')", name=op.f("ck_embedding_spaces_state")),
        schema=schema,
    )
    op.create_index(
        op.f("uq_embedding_spaces_is_default"),
        "embedding_spaces",
        ["is_default"],
        schema=schema,
        unique=True,
        postgresql_where=sa.text("is_default"),
    )
    op.create_table(
        "embeddings",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("chunk_id", sa.Uuid(), nullable=False),
        sa.Column("space_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("embedding", HALFVEC(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "chunk_id", "space_id", name=op.f("pk_embeddings")),
        sa.ForeignKeyConstraint(
            ["owner_id", "chunk_id"],
            [f"{schema}.chunks.owner_id", f"{schema}.chunks.chunk_id"],
            name=op.f("fk_embeddings_chunks"),
            ondelete="CASCADE",
        ),
        schema=schema,
    )
    # In the row while it fits the page: an exact search reads it without a detour through TOAST.
    execute(f"ALTER TABLE {quoted}.embeddings ALTER COLUMN embedding SET STORAGE MAIN")


def create_embedding_jobs(schema: str) -> None:
    """Create the queue of documents whose vectors are to be made."""
    op.create_table(
        "embedding_jobs",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=False),
        sa.Column("space_id", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("available_at", TIMESTAMP, nullable=False),
        sa.Column("leased_until", TIMESTAMP, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "job_id", name=op.f("pk_embedding_jobs")),
        sa.UniqueConstraint(
            "owner_id",
            "document_id",
            "space_id",
            name=op.f("uq_embedding_jobs_owner_id_document_id_space_id"),
        ),
        sa.CheckConstraint("state IN ('queued', 'failed')", name=op.f("ck_embedding_jobs_state")),
        document_key("embedding_jobs", schema),
        schema=schema,
    )
    op.create_index(
        op.f("ix_embedding_jobs_owner_id_state_available_at"),
        "embedding_jobs",
        ["owner_id", "state", "available_at"],
        schema=schema,
    )


def document_key(table: str, schema: str) -> sa.ForeignKeyConstraint:
    """Return the foreign key from `table` to its document."""
    return sa.ForeignKeyConstraint(
        ["owner_id", "document_id"],
        [f"{schema}.documents.owner_id", f"{schema}.documents.document_id"],
        name=op.f(f"fk_{table}_documents"),
        ondelete="CASCADE",
    )


def execute(statement: str) -> None:
    """Run `statement` as it stands: its colons are casts and names, not parameters."""
    op.execute(sa.text(statement.replace(":", r"\:")))


def downgrade() -> None:
    """Drop the tables and functions, children first."""
    schema = op.get_context().version_table_schema or ""
    # The dialect's own quoting would double a percent sign as well.
    quoted = '"' + schema.replace('"', '""') + '"'
    for table in (
        "lexical_statistics",
        "embedding_jobs",
        "embeddings",
        "embedding_spaces",
        "chunks",
        "documents",
    ):
        op.drop_table(table, schema=schema)
    execute(f"DROP FUNCTION {quoted}.lexical_weights(tsvector)")
    execute(f"DROP FUNCTION {quoted}.search_vector(text, text)")
