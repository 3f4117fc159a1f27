"""A chunk's words are analysed once, for finding and scoring it alike.

``chunks.words`` takes the place of ``chunks.terms`` and ``chunks.lexical``: a generated column
cannot read another, so each had analysed the text for itself. It holds both.

Locks: ``chunks`` exclusively while it is written anew, about 0.5 ms a chunk with its indexes; reads
and writes of other tables go on. Deploy together with the new version of the library.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the two columns by one."""
    schema = op.get_context().version_table_schema or ""
    quoted = quote(schema)
    op.drop_index(op.f("ix_chunks_terms"), table_name="chunks", schema=schema)
    execute(
        f"CREATE TYPE {quoted}.analysed_words AS (terms bigint[], lexical sparsevec(1000000000))"
    )
    create_analysed_words(quoted)
    words = f"{quoted}.search_vector(language, content)"
    # In the row, for scoring reads it; the content gives way when a row is too long for a page.
    # Statistics are those of the index: of the column they would be long, and of no use.
    execute(
        f"""
ALTER TABLE {quoted}.chunks
    DROP COLUMN terms,
    DROP COLUMN lexical,
    ADD COLUMN words {quoted}.analysed_words
        GENERATED ALWAYS AS ({quoted}.analysed_words(owner_id, {words})) STORED,
    ALTER COLUMN words SET STORAGE MAIN,
    ALTER COLUMN words SET STATISTICS 0
"""
    )
    create_index(schema, sa.text("((words).terms)"))


def downgrade() -> None:
    """Bring back the two columns."""
    schema = op.get_context().version_table_schema or ""
    quoted = quote(schema)
    op.drop_index(op.f("ix_chunks_terms"), table_name="chunks", schema=schema)
    words = f"{quoted}.search_vector(language, content)"
    execute(
        f"""
ALTER TABLE {quoted}.chunks
    DROP COLUMN words,
    ADD COLUMN terms bigint[]
        GENERATED ALWAYS AS ({quoted}.lexical_terms(owner_id, {words})) STORED,
    ADD COLUMN lexical sparsevec(1000000000)
        GENERATED ALWAYS AS ({quoted}.lexical_weights({words})) STORED,
    ALTER COLUMN terms SET STORAGE MAIN,
    ALTER COLUMN lexical SET STORAGE MAIN
"""
    )
    execute(f"DROP FUNCTION {quoted}.analysed_words(text, tsvector)")
    execute(f"DROP TYPE {quoted}.analysed_words")
    create_index(schema, "terms")


def create_analysed_words(quoted: str) -> None:
    """Create what makes the terms and their BM25 weights in one pass over the lexemes.

    The weights are those of ``lexical_weights``, which also knows what to do in the rare chunk of
    which two lexemes meet at a position, or which has more of them than a sparsevec holds.
    """
    execute(
        f"""
CREATE FUNCTION {quoted}.analysed_words(owner_id text, words tsvector)
    RETURNS {quoted}.analysed_words
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT ROW(
            coalesce(array_agg(hashtextextended(lexeme COLLATE "C", owner_hash)), '{{}}'),
            CASE
                WHEN count(*) <= 16000 AND count(*) = count(DISTINCT position) THEN (
                    '{{' || coalesce(string_agg(position || ':' || weight::real, ','), '')
                    || '}}/1000000000'
                )::sparsevec
                ELSE {quoted}.lexical_weights(words)
            END
        )::{quoted}.analysed_words
        FROM (
            SELECT lexeme,
                   hashtextextended(owner_id COLLATE "C", 0) AS owner_hash,
                   (hashtextextended(lexeme COLLATE "C", 0) & 536870911)::integer + 1 AS position,
                   2.2 * frequency / (frequency + 0.3 + 0.9 * sum(frequency) OVER () / 60.0)
                       AS weight
            FROM (
                SELECT lexeme, coalesce(cardinality(positions), 1)::float8 AS frequency
                FROM unnest(words)
            ) AS counted
        ) AS weighted
    )
"""
    )


def create_index(schema: str, terms: str | sa.TextClause) -> None:
    """Create the index that finds chunks by their terms."""
    op.create_index(
        op.f("ix_chunks_terms"),
        "chunks",
        [terms],
        schema=schema,
        postgresql_using="gin",
        # Kilobytes of new entries that wait to be sorted in: each search reads them all.
        postgresql_with={"gin_pending_list_limit": 256},
    )


def quote(name: str) -> str:
    """Return `name` as an identifier; the dialect's own quoting would double ``%`` as well."""
    return '"' + name.replace('"', '""') + '"'


def execute(statement: str) -> None:
    """Run `statement` as it stands: its colons are casts and names, not parameters."""
    op.execute(sa.text(statement.replace(":", r"\:")))
