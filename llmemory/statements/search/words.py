"""The arm by words: BM25 over the chunks that share a lexeme with the query."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import SPARSEVEC
from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    Subquery,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import TSQUERY

from llmemory.models import LEXICAL_DIMENSIONS, Tables, quoted_identifier
from llmemory.statements.search.shape import SearchShape, filtered, owner_is, pool, ranked

__all__ = ["text_arm"]


def text_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the chunks with the best words: chunk_id, value (the BM25 score), rank, relative."""
    chunks = tables.chunks
    terms = _query_terms(tables, shape)
    any_term = select(
        cast(func.string_agg(cast(terms.c.term, Text), " | "), TSQUERY)
    ).scalar_subquery()
    # pgvector's operator gives the negative inner product.
    score = type_coerce(-chunks.c.lexical.max_inner_product(_query_weights(tables, terms)), Float)
    best = (
        filtered(
            tables,
            select(chunks.c.chunk_id, score.label("lexical_score")).select_from(chunks),
            chunks,
            shape,
        )
        .where(owner_is(chunks), chunks.c.search_vector.bool_op("@@")(any_term))
        .order_by(column("lexical_score").desc(), chunks.c.chunk_id)
        .limit(pool(shape))
        .subquery("best")
    )
    return ranked(
        select(
            best.c.chunk_id,
            best.c.lexical_score.label("value"),
            func.row_number()
            .over(order_by=(best.c.lexical_score.desc(), best.c.chunk_id))
            .label("rank"),
        ),
        "text_arm",
    )


def _query_terms(tables: Tables, shape: SearchShape) -> CTE:
    """Return the query's lexemes: lexeme, term (a tsquery) and frequency within the query."""
    languages = _languages(tables, shape)
    # SQLAlchemy quotes a function's schema only in part, so its name is written out here.
    function = f"{quoted_identifier(tables.schema)}.search_vector".replace(":", r"\:")
    analyse = text(f"{function}(languages.language, :query_text)").bindparams(
        bindparam("query_text", type_=Text)
    )
    lexemes = (
        func.unnest(analyse)
        .table_valued(column("lexeme", Text), column("positions"), column("weights"))
        .render_derived(name="analysed")
    )
    lexeme = lexemes.c.lexeme
    # A lexeme as tsquery text: quoted, with quotes doubled and backslashes escaped.
    quoted = func.concat("'", func.replace(func.replace(lexeme, "\\", "\\\\"), "'", "''"), "'")
    return (
        select(
            lexeme,
            cast(quoted, TSQUERY).label("term"),
            func.max(func.cardinality(lexemes.c.positions)).label("frequency"),
        )
        .select_from(languages.join(lexemes, true()))
        .where(languages.c.language.is_not(None))
        .group_by(lexeme)
        .cte("query_terms")
        .prefix_with("MATERIALIZED")
    )


def _languages(tables: Tables, shape: SearchShape) -> CTE | Subquery:
    """Return the languages that the query is analysed in: the given one, or all of the owner's."""
    if shape.language_given:
        return select(cast(bindparam("language", type_=Text), Text).label("language")).subquery(
            "languages"
        )
    # One index probe per language on ix_documents_owner_id_language, however many documents.
    documents = tables.documents
    first = select(func.min(documents.c.language).label("language")).where(owner_is(documents))
    languages = first.cte("languages", recursive=True)
    following = (
        select(func.min(documents.c.language))
        .where(owner_is(documents), documents.c.language > languages.c.language)
        .scalar_subquery()
    )
    return languages.union_all(select(following).where(languages.c.language.is_not(None)))


def _query_weights(tables: Tables, terms: CTE) -> ColumnElement[Any]:
    """Return the query as a sparse vector of BM25's idf at the positions of its lexemes."""
    chunks, statistics = tables.chunks, tables.lexical_statistics
    counted = (
        select(func.count())
        .where(owner_is(chunks), chunks.c.search_vector.bool_op("@@")(terms.c.term))
        .correlate(terms)
        .scalar_subquery()
    )
    frequency = func.coalesce(_known_count(statistics, terms.c.lexeme, terms), counted)
    total = func.coalesce(
        _known_count(statistics, literal("")),
        select(func.count()).where(owner_is(chunks)).scalar_subquery(),
    )
    counts = (
        select(
            terms.c.lexeme,
            terms.c.frequency,
            frequency.label("chunk_count"),
            total.label("total"),
        )
        .cte("term_counts")
        # Each count is used twice below and must not be made twice.
        .prefix_with("MATERIALIZED")
    )
    rarity = func.ln(
        1
        + func.greatest(counts.c.total - counts.c.chunk_count + 0.5, 0.5)
        / (counts.c.chunk_count + 0.5)
    )
    # The position that lexical_weights gives a lexeme; two that meet are summed there and here.
    position = func.hashtextextended(counts.c.lexeme.collate("C"), 0).bitwise_and(536_870_911) + 1
    weighted = (
        select(
            position.label("position"),
            func.sum(counts.c.frequency * rarity).label("weight"),
        )
        .group_by(column("position"))
        .order_by(column("weight").desc())
        # More a sparsevec cannot hold.
        .limit(16_000)
        .subquery("weighted")
    )
    entries = func.string_agg(
        func.concat(weighted.c.position, ":", cast(weighted.c.weight, Float(24))), ","
    )
    written = func.concat("{", entries, f"}}/{LEXICAL_DIMENSIONS}")
    return select(cast(written, SPARSEVEC(LEXICAL_DIMENSIONS))).scalar_subquery()


def _known_count(
    statistics: Table, lexeme: ColumnElement[Any], terms: CTE | None = None
) -> ColumnElement[Any]:
    known = select(statistics.c.chunk_count).where(
        owner_is(statistics), statistics.c.lexeme == lexeme
    )
    return (known.correlate(terms) if terms is not None else known).scalar_subquery()
