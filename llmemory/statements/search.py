"""The search: two arms, by meaning and by words, fused and joined with their documents.

Every search is one statement. The arms are exact: each reads the owner's own rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    SmallInteger,
    Subquery,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import TSQUERY

from llmemory.models import LEXICAL_DIMENSIONS, Tables, quoted_identifier
from llmemory.statements import AnySelect
from llmemory.statements.filters import FilterShape, conditions
from llmemory.types import SearchType

__all__ = ["SearchShape", "search"]


@dataclass(frozen=True, slots=True)
class SearchShape:
    """What the SQL of a search depends on, all else being bound.

    Attributes:
        search_type: Which arms there are.
        dimensions: Length of the vectors.
        language_given: Whether the query's language is bound, or the owner's languages are used.
        filters: Conditions on the documents.
    """

    search_type: SearchType
    dimensions: int
    language_given: bool
    filters: FilterShape


@lru_cache(maxsize=4096)
def search(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return the search of `shape`.

    Binds ``owner``, ``limit``, ``offset`` and the filters; with a vector arm ``space`` and
    ``embedding`` (the vector as text); with a word arm ``query_text`` and ``language`` if given;
    with both ``alpha``, the vector arm's weight, ``pool``, the hits of each arm, and
    ``candidates``, how many of them give the scale and have a score above 0.

    Served by the key of embeddings (vector arm) and by ``ix_chunks_search_vector`` or the key of
    chunks (word arm), then by the keys of chunks and documents for the hits.
    """
    if shape.search_type is SearchType.HYBRID:
        found = _fused(_vector_arm(tables, shape), _text_arm(tables, shape))
    elif shape.search_type is SearchType.VECTOR:
        found = _single(_vector_arm(tables, shape), shape.search_type)
    else:
        found = _single(_text_arm(tables, shape), shape.search_type)
    page = (
        found.order_by(column("score").desc(), column("best_rank"), column("chunk_id"))
        .limit(bindparam("limit", type_=BigInteger))
        .offset(bindparam("offset", type_=BigInteger))
        .subquery("page")
    )
    return _with_documents(tables, page)


def _owner(table: Table) -> ColumnElement[bool]:
    return table.c.owner_id == bindparam("owner", type_=Text)


def _pool(shape: SearchShape) -> ColumnElement[int]:
    """Return how many hits an arm gives: what is fused, or else what is asked for."""
    if shape.search_type is SearchType.HYBRID:
        return bindparam("pool", type_=BigInteger)
    return bindparam("limit", type_=BigInteger) + bindparam("offset", type_=BigInteger)


def _filtered(tables: Tables, statement: AnySelect, rows: Table, shape: SearchShape) -> AnySelect:
    """Join what the filters of `shape` need to `statement`, which reads `rows`."""
    if shape.filters.is_empty():
        return statement
    chunks, documents = tables.chunks, tables.documents
    if rows is not chunks:
        statement = statement.join(
            chunks, and_(_owner(chunks), chunks.c.chunk_id == rows.c.chunk_id)
        )
    return statement.join(
        documents, and_(_owner(documents), documents.c.document_id == chunks.c.document_id)
    ).where(*conditions(documents, shape.filters))


def _vector_arm(tables: Tables, shape: SearchShape) -> CTE:
    embeddings = tables.embeddings
    halfvec = HALFVEC(shape.dimensions)
    query = cast(cast(bindparam("embedding", type_=Text), Text), halfvec)
    distance = cast(embeddings.c.embedding, halfvec).cosine_distance(query)
    nearest = (
        _filtered(
            tables,
            select(embeddings.c.chunk_id, distance.label("distance")).select_from(embeddings),
            embeddings,
            shape,
        )
        .where(
            _owner(embeddings),
            embeddings.c.space_id == bindparam("space", type_=SmallInteger),
        )
        .order_by(column("distance"), embeddings.c.chunk_id)
        .limit(_pool(shape))
        .subquery("nearest")
    )
    # A vector of zeros has no direction: its distance is NaN, which no JSON can carry.
    similarity = func.coalesce(
        1 - func.nullif(nearest.c.distance, literal_column("'NaN'::float8")), 0.0, type_=Float
    )
    return _ranked(
        select(
            nearest.c.chunk_id,
            similarity.label("value"),
            func.row_number().over(order_by=(nearest.c.distance, nearest.c.chunk_id)).label("rank"),
        ),
        "vector_arm",
    )


def _text_arm(tables: Tables, shape: SearchShape) -> CTE:
    chunks = tables.chunks
    terms = _query_terms(tables, shape)
    any_term = select(
        cast(func.string_agg(cast(terms.c.term, Text), " | "), TSQUERY)
    ).scalar_subquery()
    # pgvector's operator gives the negative inner product.
    score = type_coerce(-chunks.c.lexical.max_inner_product(_query_weights(tables, terms)), Float)
    best = (
        _filtered(
            tables,
            select(chunks.c.chunk_id, score.label("lexical_score")).select_from(chunks),
            chunks,
            shape,
        )
        .where(_owner(chunks), chunks.c.search_vector.bool_op("@@")(any_term))
        .order_by(column("lexical_score").desc(), chunks.c.chunk_id)
        .limit(_pool(shape))
        .subquery("best")
    )
    return _ranked(
        select(
            best.c.chunk_id,
            best.c.lexical_score.label("value"),
            func.row_number()
            .over(order_by=(best.c.lexical_score.desc(), best.c.chunk_id))
            .label("rank"),
        ),
        "text_arm",
    )


def _ranked(hits: AnySelect, name: str) -> CTE:
    """Add each hit's relative score: 1 for the best value, 0 for that of the last candidate.

    The scale depends on the first ``candidates`` ranks alone, so that it is the same on every
    page of a search, however many hits the page before needed.
    """
    hit = hits.subquery("hits").c
    candidates = bindparam("candidates", type_=Integer)
    highest = func.max(hit.value, type_=Float).over()
    lowest = func.coalesce(
        func.nth_value(hit.value, candidates, type_=Float).over(
            order_by=hit.rank, rows=(None, None)
        ),
        func.min(hit.value, type_=Float).over(),
        type_=Float,
    )
    scaled = func.coalesce(
        (hit.value - lowest) / func.nullif(highest - lowest, 0.0, type_=Float), 1.0, type_=Float
    )
    return select(
        hit.chunk_id,
        hit.value,
        hit.rank,
        highest.label("highest"),
        case((hit.rank > candidates, 0.0), else_=scaled).label("relative"),
    ).cte(name)


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
    first = select(func.min(documents.c.language).label("language")).where(_owner(documents))
    languages = first.cte("languages", recursive=True)
    following = (
        select(func.min(documents.c.language))
        .where(_owner(documents), documents.c.language > languages.c.language)
        .scalar_subquery()
    )
    return languages.union_all(select(following).where(languages.c.language.is_not(None)))


def _query_weights(tables: Tables, terms: CTE) -> ColumnElement[Any]:
    """Return the query as a sparse vector of BM25's idf at the positions of its lexemes."""
    chunks, statistics = tables.chunks, tables.lexical_statistics
    counted = (
        select(func.count())
        .where(_owner(chunks), chunks.c.search_vector.bool_op("@@")(terms.c.term))
        .correlate(terms)
        .scalar_subquery()
    )
    frequency = func.coalesce(_known_count(statistics, terms.c.lexeme, terms), counted)
    total = func.coalesce(
        _known_count(statistics, literal("")),
        select(func.count()).where(_owner(chunks)).scalar_subquery(),
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
        _owner(statistics), statistics.c.lexeme == lexeme
    )
    return (known.correlate(terms) if terms is not None else known).scalar_subquery()


def _single(arm: CTE, search_type: SearchType) -> AnySelect:
    """Return the hits of one arm alone, with scores from 0 to 1."""
    nothing = null()
    score: ColumnElement[Any]
    values: tuple[ColumnElement[Any], ...]
    if search_type is SearchType.VECTOR:
        score = func.least(func.greatest(arm.c.value, 0.0), 1.0)
        values = (arm.c.value, nothing, arm.c.rank, nothing)
    else:
        score = func.coalesce(arm.c.value / func.nullif(arm.c.highest, 0.0, type_=Float), 0.0)
        values = (nothing, arm.c.value, nothing, arm.c.rank)
    return _found(arm.c.chunk_id, score, arm.c.rank, *values)


def _fused(vector: CTE, words: CTE) -> AnySelect:
    """Return the hits of both arms by their relative scores, weighted by ``alpha``.

    A hit that one arm lacks has 0 there. Source of the method: Bruch et al. 2023, convex
    combination of scores scaled by their minimum and maximum.
    """
    alpha = bindparam("alpha", type_=Float)
    score = alpha * func.coalesce(vector.c.relative, 0.0) + (1 - alpha) * func.coalesce(
        words.c.relative, 0.0
    )
    return _found(
        func.coalesce(vector.c.chunk_id, words.c.chunk_id),
        score,
        func.least(vector.c.rank, words.c.rank),
        vector.c.value,
        words.c.value,
        vector.c.rank,
        words.c.rank,
    ).select_from(vector.join(words, vector.c.chunk_id == words.c.chunk_id, full=True))


def _found(*columns: ColumnElement[Any]) -> AnySelect:
    names = (
        "chunk_id",
        "score",
        "best_rank",
        "similarity",
        "lexical_score",
        "vector_rank",
        "text_rank",
    )
    return select(*(entry.label(name) for name, entry in zip(names, columns, strict=True)))


def _with_documents(tables: Tables, page: Subquery) -> AnySelect:
    chunks, documents = tables.chunks, tables.documents
    return (
        select(
            page.c.chunk_id,
            page.c.score,
            page.c.similarity,
            page.c.lexical_score,
            page.c.vector_rank,
            page.c.text_rank,
            chunks.c.content,
            chunks.c.headings,
            chunks.c.position,
            chunks.c.start_offset,
            chunks.c.end_offset,
            documents.c.document_id,
            documents.c.document_name,
            documents.c.document_type,
            documents.c.metadata,
            documents.c.id_at_origin,
            documents.c.external_id,
            documents.c.document_date,
        )
        .select_from(page)
        .join(chunks, and_(_owner(chunks), chunks.c.chunk_id == page.c.chunk_id))
        .join(
            documents,
            and_(_owner(documents), documents.c.document_id == chunks.c.document_id),
        )
        .order_by(page.c.score.desc(), page.c.best_rank, page.c.chunk_id)
    )
