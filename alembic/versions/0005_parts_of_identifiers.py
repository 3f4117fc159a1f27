"""Identifiers are found by the whole and by each part, in any spelling that Unicode has.

PostgreSQL's parser reads ``a.b`` as a host, ``-42`` as a number and ``<T>`` as a tag. It is given
plain words instead. What they were parts of is added without positions: it changes no phrase, and
makes no passage longer.

Locks: ``chunks`` exclusively while it is written anew, about 0.5 ms a chunk with its indexes; reads
and writes of other tables go on. Deploy together with the new version of the library.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Thai, Lao, Burmese, Khmer, kana, Chinese characters and Hangul.
UNSPACED = r"\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3040-\u30FF\u3400-\u4DBF" + (
    r"\u4E00-\u9FFF\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
# Besides, what becomes one of them: jamo, radicals, squared and half-width forms.
UNFOLDED = UNSPACED + r"\u1100-\u11FF\u2E80-\u2FDF\u3130-\u318F\u3200-\u33FF\uFF66-\uFFDC"
CHINESE = r"\u3005-\u3007\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0003FFFF"
ACCENTS = r"[\u0300-\u036F]"
# What is the same in every normal form and has no accent: dashes, quotation marks, Greek, arrows.
SETTLED = r"\x01-\x7F\u00A3\u00A7\u00A9\u00AE\u00B0\u00B1\u00B7\u00D7\u0391-\u03A9\u03B1-\u03C9" + (
    r"\u2010\u2012-\u2015\u2018-\u201E\u2020-\u2022\u2032\u20AC\u2190-\u2195\u2212\u223C\u2248\u2264\u2265"
)
PRECOMPOSED = r"\u00C0-\u00FF\u0400-\u04FF"

# Names that are more than their letters: U.S., C++, F#, .NET.
ODD_SPELLING = r"\m[[:alpha:]](?:\.[[:alpha:]]\M|\+\+|#)|\.NET|&amp;"
# parseURL, isValid, HTTPServer; but mRNA, siRNA and McDonald are words.
CAMEL_CASE = "(?:[[:lower:]]{2}(?:[[:upper:]][[:lower:]]|[[:lower:]][[:upper:]])" + (
    "|[[:upper:]]{2}[[:lower:]]{2})"
)
# What makes of a word a tag, a host, a path, an address or a number.
SIGNS = r"[-<+~/_@]|\.(?=[[:alnum:]])"
COMPOUND = r"[[:alnum:]]+(?:[-./_@&+\\:]{1,2}[[:alnum:]]+)+"

LONGEST_LEXEME = 2046
"""Bytes that PostgreSQL allows."""


def upgrade() -> None:
    """Analyse the words of all chunks in the new way."""
    schema = op.get_context().version_table_schema or ""
    quoted = quote(schema)
    op.drop_index(op.f("ix_chunks_terms"), table_name="chunks", schema=schema)
    create_spelling(quoted)
    create_parts(quoted)
    create_vectors(quoted)
    replace_weights(quoted, length="coalesce(sum(cardinality(positions)) OVER (), 0)")
    analyse_anew(quoted)
    create_index(schema)


def downgrade() -> None:
    """Analyse them as before."""
    schema = op.get_context().version_table_schema or ""
    quoted = quote(schema)
    op.drop_index(op.f("ix_chunks_terms"), table_name="chunks", schema=schema)
    replace_function(
        quoted,
        "prepared_text(language text, content text) RETURNS text",
        f"""CASE
        WHEN content ~ '[{UNSPACED}]' THEN {quoted}.character_pairs(normalize(content, NFKC))
        WHEN language IN ('english', 'simple')
            THEN regexp_replace(normalize(content, NFKD), '{ACCENTS}', '', 'g')
        ELSE normalize(content, NFKC)
    END""",
    )
    for name, analysis, returns in (
        ("search_vector", "to_tsvector", "tsvector"),
        ("phrase_query", "phraseto_tsquery", "tsquery"),
    ):
        replace_function(
            quoted,
            f"{name}(language text, content text) RETURNS {returns}",
            f"""{analysis}(
        {quoted}.text_search_configuration(language),
        CASE
            WHEN octet_length(content) = length(content) THEN content
            ELSE {quoted}.prepared_text(language, content)
        END
    )""",
        )
    replace_weights(quoted, length="sum(coalesce(cardinality(positions), 1)) OVER ()")
    analyse_anew(quoted)
    create_index(schema)
    for function in (
        "word_vector(text, text)",
        "words_and_parts(regconfig, text)",
        "words_and_compounds(regconfig, text)",
        "single_characters(text)",
        "camel_case_parts(text)",
        "compound_words(text)",
        "plain_words(text)",
        "spelled_text(text)",
        "folded_text(text, text)",
        "composed_text(text)",
    ):
        execute(f"DROP FUNCTION {quoted}.{function}")


def create_spelling(quoted: str) -> None:
    """Create what gives text the one spelling of many in which it is compared.

    Normalisation is slow: most text, though not ASCII, can do without it.
    """
    replace_function(
        quoted,
        "composed_text(content text) RETURNS text",
        f"""CASE
        WHEN content ~ '[^{SETTLED}{PRECOMPOSED}]'
            THEN normalize(content, NFKC)
        ELSE content
    END""",
    )
    replace_function(
        quoted,
        "folded_text(language text, content text) RETURNS text",
        f"""{quoted}.composed_text(
        CASE
            WHEN {quoted}.text_search_configuration(language)
                 IN ('pg_catalog.english'::regconfig, 'pg_catalog.simple'::regconfig)
                THEN regexp_replace(normalize(content, NFKD), '{ACCENTS}', '', 'g')
            ELSE content
        END
    )""",
    )
    spelled = "replace(content, '&amp;', '&')"
    for pattern, spelling in (
        (r"\m([[:alpha:]])\.(?=[[:alpha:]]\M)", r"\1"),
        (r"\m([[:alpha:]])\+\+", r"\1plusplus "),
        (r"\m([[:alpha:]])#", r"\1sharp "),
        (r"(^|[^[:alnum:]])\.NET\M", r"\1dotnet"),
    ):
        spelled = f"regexp_replace({spelled}, '{pattern}', '{spelling}', 'g')"
    replace_function(
        quoted,
        "spelled_text(content text) RETURNS text",
        f"""CASE
        WHEN content ~ '{ODD_SPELLING}' THEN {spelled}
        ELSE content
    END""",
    )
    replace_function(
        quoted,
        "prepared_text(language text, content text) RETURNS text",
        f"""{quoted}.spelled_text(
        CASE
            WHEN octet_length(content) = length(content) OR content !~ '[^{SETTLED}]'
                THEN content
            WHEN content ~ '[{UNFOLDED}]'
                THEN {quoted}.character_pairs({quoted}.folded_text(language, content))
            ELSE {quoted}.folded_text(language, content)
        END
    )""",
    )


def create_parts(quoted: str) -> None:
    """Create what takes identifiers, and scripts without spaces, to pieces."""
    replace_function(
        quoted,
        "plain_words(content text) RETURNS text",
        f"regexp_replace(content, '{SIGNS}', ' ', 'g')",
    )
    execute(
        f"""
CREATE FUNCTION {quoted}.compound_words(content text) RETURNS SETOF text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    BEGIN ATOMIC
        SELECT word[1]
        FROM regexp_matches(content, '{COMPOUND}', 'g') AS word
        WHERE octet_length(word[1]) <= {LONGEST_LEXEME};
    END
"""
    )
    replace_function(
        quoted,
        "camel_case_parts(content text) RETURNS text",
        rf"""(
        SELECT string_agg(
            regexp_replace(
                regexp_replace(word[1], '([[:lower:][:digit:]])([[:upper:]])', '\1 \2', 'g'),
                '([[:upper:]])([[:upper:]][[:lower:]])', '\1 \2', 'g'
            ),
            ' '
        )
        FROM regexp_matches(content, '[[:alnum:]]*{CAMEL_CASE}[[:alnum:]]*', 'g') AS word
    )""",
    )
    # Some words are of one character, which pairs of them would not find.
    replace_function(
        quoted,
        "single_characters(content text) RETURNS tsvector",
        f"""array_to_tsvector(
        string_to_array(
            regexp_replace(content, '[^{CHINESE}]+', '', 'g'), NULL
        )
    )""",
    )


def create_vectors(quoted: str) -> None:
    """Create what makes lexemes: of phrases and, with what is added, of all else."""
    replace_function(
        quoted,
        "words_and_compounds(configuration regconfig, content text) RETURNS tsvector",
        f"""to_tsvector(configuration, {quoted}.plain_words(content))
        || array_to_tsvector(
            ARRAY(SELECT lower(word) FROM {quoted}.compound_words(content) AS word)
        )""",
    )
    replace_function(
        quoted,
        "words_and_parts(configuration regconfig, content text) RETURNS tsvector",
        f"""{quoted}.words_and_compounds(configuration, content)
        || CASE
            WHEN content ~ '{CAMEL_CASE}'
                THEN strip(to_tsvector(configuration, {quoted}.camel_case_parts(content)))
            ELSE ''::tsvector
        END
        || CASE
            WHEN octet_length(content) <> length(content)
                THEN {quoted}.single_characters(content)
            ELSE ''::tsvector
        END""",
    )
    configuration = f"{quoted}.text_search_configuration(language)"
    prepared = f"{quoted}.prepared_text(language, content)"
    # Most passages of prose are told apart from all that takes time by this one expression.
    replace_function(
        quoted,
        "search_vector(language text, content text) RETURNS tsvector",
        f"""CASE
        WHEN content ~ '[^{SETTLED}]|{ODD_SPELLING}|{CAMEL_CASE}'
            THEN {quoted}.words_and_parts({configuration}, {prepared})
        ELSE {quoted}.words_and_compounds({configuration}, content)
    END""",
    )
    for name, analysis, returns in (
        ("word_vector", "to_tsvector", "tsvector"),
        ("phrase_query", "phraseto_tsquery", "tsquery"),
    ):
        replace_function(
            quoted,
            f"{name}(language text, content text) RETURNS {returns}",
            f"{analysis}({configuration}, {quoted}.plain_words({prepared}))",
        )


def replace_weights(quoted: str, *, length: str) -> None:
    """Have BM25's weights take `length`, an expression, for how long a passage is."""
    counted = f"""
                SELECT lexeme, coalesce(cardinality(positions), 1)::float8 AS frequency,
                       ({length})::float8 AS length
                FROM unnest(words)"""
    weight = "2.2 * frequency / (frequency + 0.3 + 0.9 * length / 60.0)"
    execute(
        f"""
CREATE OR REPLACE FUNCTION {quoted}.lexical_weights(terms tsvector) RETURNS sparsevec
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
        SELECT ('{{' || coalesce(string_agg(concat(position, ':', weight::real), ','), '')
                || '}}/1000000000')::sparsevec
        FROM (
            SELECT position, sum(weight) AS weight
            FROM (
                SELECT (hashtextextended(lexeme COLLATE "C", 0) & 536870911) + 1 AS position,
                       {weight} AS weight
                FROM ({counted.replace("words", "terms")}
                ) AS counted
            ) AS weighted
            GROUP BY position
            ORDER BY 2 DESC
            LIMIT 16000
        ) AS positioned
    )
"""
    )
    execute(
        f"""
CREATE OR REPLACE FUNCTION {quoted}.analysed_words(owner_id text, words tsvector)
    RETURNS {quoted}.analysed_words
    LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
    RETURN (
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
                   {weight} AS weight
            FROM ({counted}
            ) AS counted
        ) AS weighted
    )
"""
    )


def analyse_anew(quoted: str) -> None:
    """Write the generated column again: its functions are not what they were."""
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


def create_index(schema: str) -> None:
    """Create the index that finds chunks by their terms."""
    op.create_index(
        op.f("ix_chunks_terms"),
        "chunks",
        [sa.text("((words).terms)")],
        schema=schema,
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 256},
    )


def replace_function(quoted: str, signature: str, body: str) -> None:
    """Create a function of SQL, or give it another body."""
    execute(
        f"""
CREATE OR REPLACE FUNCTION {quoted}.{signature}
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN {body}
"""
    )


def quote(name: str) -> str:
    """Return `name` as an identifier; the dialect's own quoting would double ``%`` as well."""
    return '"' + name.replace('"', '""') + '"'


def execute(statement: str) -> None:
    """Run `statement` as it stands: its colons are casts and names, not parameters."""
    op.execute(sa.text(statement.replace(":", r"\:")))
