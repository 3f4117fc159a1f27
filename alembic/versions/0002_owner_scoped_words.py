"""Words are found per owner, and in scripts that put no spaces between them.

``chunks.terms`` takes the place of ``chunks.search_vector``: hashes of owner and lexeme, so that
an owner's words are found among the owner's own postings, however large the table is.

Locks: ``chunks`` exclusively while it is written anew, about 0.5 ms a chunk; reads and writes of
other tables go on. Deploy before the new version of the library.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LANGUAGES = (
    "arabic armenian basque catalan danish dutch english finnish french german greek hindi "
    "hungarian indonesian irish italian lithuanian nepali norwegian portuguese romanian russian "
    "serbian spanish swedish tamil turkish yiddish"
).split()

# Thai, Lao, Burmese, Khmer, kana, Chinese characters and Hangul.
UNSPACED = r"[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3040-\u30FF\u3400-\u4DBF" + (
    r"\u4E00-\u9FFF\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF]"
)
ACCENTS = r"[\u0300-\u036F]"


def upgrade() -> None:
    """Replace the tsvector by hashed terms, and the statistics of lexemes by those of terms."""
    schema = op.get_context().version_table_schema or ""
    quoted = quote(schema)
    op.drop_index(op.f("ix_chunks_search_vector"), table_name="chunks", schema=schema)
    execute(f"ALTER TABLE {quoted}.chunks DROP COLUMN lexical, DROP COLUMN search_vector")
    create_text_functions(quoted)
    create_search_vector(quoted)
    replace_lexical_weights(quoted, average_length=60)
    execute(
        f"""
CREATE FUNCTION {quoted}.lexical_terms(owner_id text, words tsvector) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT coalesce(
            array_agg(
                hashtextextended(
                    lexeme COLLATE "C", hashtextextended(owner_id COLLATE "C", 0)
                )
            ),
            '{{}}'
        )
        FROM unnest(tsvector_to_array(words)) AS lexeme
    )
"""
    )
    words = f"{quoted}.search_vector(language, content)"
    # In the row, for scoring reads them; the content gives way when a row is too long for a page.
    execute(
        f"""
ALTER TABLE {quoted}.chunks
    ADD COLUMN terms bigint[]
        GENERATED ALWAYS AS ({quoted}.lexical_terms(owner_id, {words})) STORED,
    ADD COLUMN lexical sparsevec(1000000000)
        GENERATED ALWAYS AS ({quoted}.lexical_weights({words})) STORED,
    ALTER COLUMN terms SET STORAGE MAIN,
    ALTER COLUMN lexical SET STORAGE MAIN
"""
    )
    op.create_index(
        op.f("ix_chunks_terms"),
        "chunks",
        ["terms"],
        schema=schema,
        postgresql_using="gin",
        # Kilobytes of new entries that wait to be sorted in: each search reads them all.
        postgresql_with={"gin_pending_list_limit": 256},
    )
    replace_statistics(
        schema, sa.Column("term", sa.BigInteger(), autoincrement=False, nullable=False)
    )


def create_text_functions(quoted: str) -> None:
    """Create what prepares text that is not plain ASCII."""
    # Two characters at a time, each but the last beginning one: where no spaces tell words apart,
    # this finds as well as dictionaries do, and phrases stay in order.
    execute(
        f"""
CREATE FUNCTION {quoted}.character_pairs(content text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT string_agg(
            CASE
                WHEN NOT is_unspaced THEN letter
                WHEN next_is_unspaced THEN ' ' || letter || next_letter || ' '
                WHEN previous_is_unspaced THEN ' '
                ELSE ' ' || letter || ' '
            END,
            '' ORDER BY place
        )
        FROM (
            SELECT letter, place, is_unspaced,
                   lead(letter) OVER by_place AS next_letter,
                   lead(is_unspaced) OVER by_place AS next_is_unspaced,
                   lag(is_unspaced) OVER by_place AS previous_is_unspaced
            FROM (
                SELECT letter, place, letter ~ '{UNSPACED}' AS is_unspaced
                FROM unnest(string_to_array(content, NULL)) WITH ORDINALITY AS u (letter, place)
            ) AS letters
            WINDOW by_place AS (ORDER BY place)
        ) AS neighbours
    )
"""
    )
    execute(
        f"""
CREATE FUNCTION {quoted}.prepared_text(language text, content text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN CASE
        WHEN content ~ '{UNSPACED}' THEN {quoted}.character_pairs(normalize(content, NFKC))
        WHEN language IN ('english', 'simple')
            THEN regexp_replace(normalize(content, NFKD), '{ACCENTS}', '', 'g')
        ELSE normalize(content, NFKC)
    END
"""
    )


def create_search_vector(quoted: str) -> None:
    """Have text prepared before it is analysed, where it is not plain ASCII."""
    cases = "\n".join(
        f"        WHEN '{name}' THEN 'pg_catalog.{name}'::regconfig" for name in LANGUAGES
    )
    execute(
        f"""
CREATE FUNCTION {quoted}.text_search_configuration(language text) RETURNS regconfig
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE language
{cases}
        ELSE 'pg_catalog.simple'::regconfig
    END
"""
    )
    for name, analysis, returns in (
        ("search_vector", "to_tsvector", "tsvector"),
        ("phrase_query", "phraseto_tsquery", "tsquery"),
    ):
        execute(
            f"""
CREATE OR REPLACE FUNCTION {quoted}.{name}(language text, content text) RETURNS {returns}
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN {analysis}(
        {quoted}.text_search_configuration(language),
        CASE
            WHEN octet_length(content) = length(content) THEN content
            ELSE {quoted}.prepared_text(language, content)
        END
    )
"""
        )


def replace_lexical_weights(quoted: str, *, average_length: int) -> None:
    """Set the average length of a passage that BM25's weights assume; k1 = 1.2, b = 0.75.

    Too small a length costs less than one that is too large: passages are at most about three
    times as long, and those of short documents may be as short as one likes.
    """
    execute(
        f"""
CREATE OR REPLACE FUNCTION {quoted}.lexical_weights(terms tsvector) RETURNS sparsevec
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT ('{{' || coalesce(string_agg(position || ':' || weight::real, ','), '')
                || '}}/1000000000')::sparsevec
        FROM (
            SELECT position, sum(weight) AS weight
            FROM (
                SELECT (hashtextextended(lexeme COLLATE "C", 0) & 536870911) + 1 AS position,
                       2.2 * frequency
                       / (frequency + 0.3 + 0.9 * sum(frequency) OVER () / {average_length}.0)
                           AS weight
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


def replace_statistics(schema: str, key: sa.Column[object]) -> None:
    """Create the statistics anew: they are an aid to speed that is counted again."""
    op.drop_table("lexical_statistics", schema=schema)
    op.create_table(
        "lexical_statistics",
        sa.Column("owner_id", sa.Text(), nullable=False),
        key,
        sa.Column("chunk_count", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", key.name, name=op.f("pk_lexical_statistics")),
        schema=schema,
    )


def downgrade() -> None:
    """Bring back the tsvector, without what the older version does not know."""
    schema = op.get_context().version_table_schema or ""
    quoted = quote(schema)
    op.drop_index(op.f("ix_chunks_terms"), table_name="chunks", schema=schema)
    execute(f"ALTER TABLE {quoted}.chunks DROP COLUMN terms, DROP COLUMN lexical")
    cases = "\n".join(
        f"        WHEN '{name}' THEN to_tsvector('pg_catalog.{name}'::regconfig, content)"
        for name in LANGUAGES
    )
    execute(
        f"""
CREATE OR REPLACE FUNCTION {quoted}.search_vector(language text, content text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE language
{cases}
        ELSE to_tsvector('pg_catalog.simple'::regconfig, content)
    END
"""
    )
    for function in (
        "lexical_terms(text, tsvector)",
        "phrase_query(text, text)",
        "text_search_configuration(text)",
        "prepared_text(text, text)",
        "character_pairs(text)",
    ):
        execute(f"DROP FUNCTION {quoted}.{function}")
    replace_lexical_weights(quoted, average_length=120)
    words = f"{quoted}.search_vector(language, content)"
    execute(
        f"""
ALTER TABLE {quoted}.chunks
    ADD COLUMN search_vector tsvector GENERATED ALWAYS AS ({words}) STORED,
    ADD COLUMN lexical sparsevec(1000000000)
        GENERATED ALWAYS AS ({quoted}.lexical_weights({words})) STORED
"""
    )
    op.create_index(
        op.f("ix_chunks_search_vector"),
        "chunks",
        ["search_vector"],
        schema=schema,
        postgresql_using="gin",
    )
    replace_statistics(schema, sa.Column("lexeme", sa.Text(), nullable=False))


def quote(name: str) -> str:
    """Return `name` as an identifier; the dialect's own quoting would double ``%`` as well."""
    return '"' + name.replace('"', '""') + '"'


def execute(statement: str) -> None:
    """Run `statement` as it stands: its colons are casts and names, not parameters."""
    op.execute(sa.text(statement.replace(":", r"\:")))
