"""The query, analysed as the documents were: its terms, and what it requires and excludes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Integer,
    Subquery,
    Text,
    and_,
    bindparam,
    cast,
    column,
    exists,
    func,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, TSVECTOR

from llmemory.models import Tables
from llmemory.statements.functions import schema_function, terms_of
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.shape import SearchShape

__all__ = ["meets_conditions", "query_terms"]

EXCLUDED = 0
"""Group of what must not occur; the groups of which each must be met count from 1."""


def query_terms(tables: Tables, shape: SearchShape) -> CTE:
    """Return the query's lexemes: key, position and frequency within the query."""
    languages = _languages(tables, shape)
    analysed = schema_function(
        tables,
        "search_vector",
        languages.c.language,
        bindparam("query_text", type_=Text),
        type_=TSVECTOR,
    )
    lexemes = (
        func.unnest(analysed)
        .table_valued(column("lexeme", Text), column("positions"), column("weights"))
        .render_derived(name="analysed")
    )
    lexeme = lexemes.c.lexeme.collate("C")
    key = func.hashtextextended(lexeme, _owner_hash(), type_=BigInteger)
    return (
        select(
            key.label("key"),
            (key.bitwise_and(536_870_911) + 1).label("position"),
            func.coalesce(func.max(func.cardinality(lexemes.c.positions)), 1).label("frequency"),
        )
        .select_from(languages.join(lexemes, true()))
        .where(languages.c.language.is_not(None))
        .group_by(lexemes.c.lexeme)
        .cte("query_terms")
        .prefix_with("MATERIALIZED")
    )


def meets_conditions(tables: Tables, shape: SearchShape) -> ColumnElement[bool]:
    """Return that a chunk has what the query requires and lacks what it excludes.

    Binds ``phrases``, an array of texts, ``phrase_groups``, the group of each, and ``insists``,
    whether a group that no chunk of the owner meets counts.
    """
    chunks = tables.chunks
    phrases = _phrases(tables, shape)
    occurs = _occurs(tables, chunks, phrases)
    unmet = (
        select(phrases.c.phrase_group)
        .where(phrases.c.phrase_group != EXCLUDED, phrases.c.counts)
        .group_by(phrases.c.phrase_group)
        .having(not_(func.bool_or(occurs)))
        .correlate(chunks)
    )
    unwanted = (
        select(phrases.c.phrase_group)
        .where(phrases.c.phrase_group == EXCLUDED, occurs)
        .correlate(chunks)
    )
    return and_(not_(exists(unmet)), not_(exists(unwanted)))


@lru_cache(maxsize=4096)
def _phrases(tables: Tables, shape: SearchShape) -> CTE:
    """Return the phrases in each language: phrase_group, language, phrase, phrase_keys."""
    languages = _languages(tables, shape)
    given = (
        func.unnest(
            bindparam("phrases", type_=ARRAY(Text)),
            bindparam("phrase_groups", type_=ARRAY(Integer)),
        )
        .table_valued(column("phrase", Text), column("phrase_group", Integer))
        .render_derived(name="given")
    )
    arguments = (languages.c.language, given.c.phrase)
    keys = schema_function(
        tables,
        "lexical_terms",
        bindparam("owner", type_=Text),
        schema_function(tables, "word_vector", *arguments, type_=TSVECTOR),
        type_=ARRAY(BigInteger),
    )
    analysed = (
        select(
            given.c.phrase_group,
            languages.c.language,
            schema_function(tables, "phrase_query", *arguments, type_=TSQUERY).label("phrase"),
            keys.label("phrase_keys"),
        )
        .select_from(languages.join(given, true()))
        .where(languages.c.language.is_not(None))
        .subquery("analysed_phrases")
    )
    chunks = tables.chunks.alias("holding")
    is_met = exists().where(owner_is(chunks), _occurs(tables, chunks, analysed))
    return (
        select(
            analysed,
            func.bool_or(or_(bindparam("insists", type_=Boolean), is_met))
            .over(partition_by=analysed.c.phrase_group)
            .label("counts"),
        )
        # Stop words alone ask for nothing.
        .where(func.cardinality(analysed.c.phrase_keys) > 0)
        .cte("phrases")
        .prefix_with("MATERIALIZED")
    )


def _occurs(tables: Tables, chunks: FromClause, phrases: FromClause) -> ColumnElement[bool]:
    """Return that a phrase stands in a chunk; a word's key alone says so."""
    analysed = schema_function(
        tables, "word_vector", phrases.c.language, chunks.c.content, type_=TSVECTOR
    )
    return and_(
        terms_of(chunks).contains(phrases.c.phrase_keys),
        or_(
            func.cardinality(phrases.c.phrase_keys) == 1,
            analysed.bool_op("@@")(phrases.c.phrase),
        ),
    )


def _owner_hash() -> ColumnElement[Any]:
    owner = cast(bindparam("owner", type_=Text), Text).collate("C")
    return func.hashtextextended(owner, 0, type_=BigInteger)


@lru_cache(maxsize=4096)
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
