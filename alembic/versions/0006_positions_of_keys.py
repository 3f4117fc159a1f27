"""A lexeme's position among the weights is part of its key, so that it is hashed only once.

Weights are whole numbers, of hundred thousandths: shorter to write and to read. Together they take
a tenth off what the analysed words cost a write.

Locks: ``chunks`` exclusively while it is written anew, about 0.5 ms a chunk with its indexes; reads
and writes of other tables go on. Deploy together with the new version of the library.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WEIGHT = "2.2 * frequency / (frequency + 0.3 + 0.9 * length / 60.0)"
"""BM25's, with k1 = 1.2 and b = 0.75, of a passage beside one of 60 lexemes."""

COUNTED = """coalesce(cardinality(positions), 1)::float8 AS frequency,
                       (coalesce(sum(cardinality(positions)) OVER (), 0))::float8 AS length"""


def upgrade() -> None:
    """Take positions from keys."""
    quoted = quote(op.get_context().version_table_schema or "")
    key = """hashtextextended(
                        lexeme COLLATE "C", hashtextextended(owner_id COLLATE "C", 0)
                    )"""
    keyed = f"""
            SELECT key, (key & 536870911)::integer + 1 AS position,
                   (100000 * {WEIGHT})::integer AS weight
            FROM (
                SELECT {key} AS key,
                       {COUNTED}
                FROM unnest(words)
            ) AS counted"""
    execute(
        f"""
CREATE FUNCTION {quoted}.lexical_weights(owner_id text, words tsvector) RETURNS sparsevec
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT ('{{' || coalesce(string_agg(concat(position, ':', weight), ','), '')
                || '}}/1000000000')::sparsevec
        FROM (
            SELECT position, sum(weight) AS weight
            FROM ({keyed}
            ) AS keyed
            GROUP BY position
            ORDER BY 2 DESC
            LIMIT 16000
        ) AS positioned
    )
"""
    )
    write_anew(
        quoted,
        f"""(
        SELECT ROW(
            coalesce(array_agg(key), '{{}}'),
            CASE
                WHEN count(*) <= 16000 AND count(*) = count(DISTINCT position) THEN (
                    '{{' || coalesce(string_agg(concat(position, ':', weight), ','), '')
                    || '}}/1000000000'
                )::sparsevec
                ELSE {quoted}.lexical_weights(owner_id, words)
            END
        )::{quoted}.analysed_words
        FROM ({keyed}
        ) AS keyed
    )""",
    )
    execute(f"DROP FUNCTION {quoted}.lexical_weights(tsvector)")


def downgrade() -> None:
    """Hash each lexeme once more, for its position."""
    quoted = quote(op.get_context().version_table_schema or "")
    execute(
        f"""
CREATE FUNCTION {quoted}.lexical_weights(terms tsvector) RETURNS sparsevec
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT ('{{' || coalesce(string_agg(concat(position, ':', weight::real), ','), '')
                || '}}/1000000000')::sparsevec
        FROM (
            SELECT position, sum(weight) AS weight
            FROM (
                SELECT (hashtextextended(lexeme COLLATE "C", 0) & 536870911) + 1 AS position,
                       {WEIGHT} AS weight
                FROM (
                    SELECT lexeme,
                       {COUNTED}
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
    write_anew(
        quoted,
        f"""(
        SELECT ROW(
            coalesce(array_agg(hashtextextended(lexeme COLLATE "C", owner_hash)), '{{}}'),
            CASE
                WHEN count(*) <= 16000 AND count(*) = count(DISTINCT position) THEN (
                    '{{' || coalesce(string_agg(concat(position, ':', weight::real), ','), '')
                    || '}}/1000000000'
                )::sparsevec
                ELSE {quoted}.lexical_weights(words)
            END
        )::{quoted}.analysed_words
        FROM (
            SELECT lexeme,
                   hashtextextended(owner_id COLLATE "C", 0) AS owner_hash,
                   (hashtextextended(lexeme COLLATE "C", 0) & 536870911)::integer + 1 AS position,
                   {WEIGHT} AS weight
            FROM (
                SELECT lexeme,
                       {COUNTED}
                FROM unnest(words)
            ) AS counted
        ) AS weighted
    )""",
    )
    execute(f"DROP FUNCTION {quoted}.lexical_weights(text, tsvector)")


def write_anew(quoted: str, body: str) -> None:
    """Give ``analysed_words`` another body, and the column what it makes then."""
    schema = op.get_context().version_table_schema or ""
    op.drop_index(op.f("ix_chunks_terms"), table_name="chunks", schema=schema)
    execute(
        f"""
CREATE OR REPLACE FUNCTION {quoted}.analysed_words(owner_id text, words tsvector)
    RETURNS {quoted}.analysed_words
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN {body}
"""
    )
    words = f"{quoted}.search_vector(language, content)"
    execute(
        f"""
ALTER TABLE {quoted}.chunks
    DROP COLUMN words,
    ADD COLUMN words {quoted}.analysed_words
        GENERATED ALWAYS AS ({quoted}.analysed_words(owner_id, {words})) STORED,
    ALTER COLUMN words SET STORAGE MAIN,
    ALTER COLUMN words SET STATISTICS 0
"""
    )
    op.create_index(
        op.f("ix_chunks_terms"),
        "chunks",
        [sa.text("((words).terms)")],
        schema=schema,
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 256},
    )


def quote(name: str) -> str:
    """Return `name` as an identifier; the dialect's own quoting would double ``%`` as well."""
    return '"' + name.replace('"', '""') + '"'


def execute(statement: str) -> None:
    """Run `statement` as it stands: its colons are casts and names, not parameters."""
    op.execute(sa.text(statement.replace(":", r"\:")))
