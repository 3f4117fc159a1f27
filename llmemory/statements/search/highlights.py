"""Which words of a hit are the query's, for highlights."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Subquery,
    Text,
    bindparam,
    cast,
    column,
    false,
    func,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from llmemory.models import Tables
from llmemory.statements.functions import schema_function
from llmemory.statements.search.shape import SearchShape
from llmemory.text.highlighting import UNSPACED

__all__ = ["matched_words"]

BLANK = 12
"""Type of what PostgreSQL's parser finds between words."""

SIGNED = r"\m[[:alpha:]](?:\+\+|#)|\.NET\M"
"""Names that end, or begin, with signs."""


def matched_words(tables: Tables, shape: SearchShape) -> ColumnElement[Any]:
    """Return the words of a chunk, as they are written there, that share a lexeme with the query.

    The query is analysed in its own language, or else in the chunk's. Every word is analysed by
    itself, by the same function as the whole chunk was. Scripts without spaces are left out.
    """
    chunks = tables.chunks
    language: ColumnElement[Any] = chunks.c.language
    if shape.language_given:
        language = cast(bindparam("language", type_=Text), Text)

    def lexemes(language: ColumnElement[Any], words: ColumnElement[Any]) -> ColumnElement[Any]:
        analysed = schema_function(tables, "search_vector", language, words, type_=TSVECTOR)
        return func.tsvector_to_array(analysed, type_=ARRAY(Text))

    # In a subquery of its own, so that the query is analysed once and not for every word.
    query = cast(bindparam("query_text", type_=Text), Text)
    wanted = select(lexemes(language, query)).correlate(chunks).scalar_subquery()
    words = _words(tables)
    found = lexemes(chunks.c.language, words.c.word)
    return (
        select(func.array_agg(words.c.word))
        .where(
            found.bool_op("&&")(wanted),
            or_(words.c.is_plain, found.bool_op("<@")(wanted)),
        )
        .correlate(chunks)
        .scalar_subquery()
    )


def _words(tables: Tables) -> Subquery:
    """Return the words of a chunk, and with ``is_plain`` false what is more than one of them."""
    content = tables.chunks.c.content
    spaced = func.regexp_replace(content, f"[{UNSPACED}]", " ", "g")
    parsed = (
        func.ts_parse("default", schema_function(tables, "plain_words", spaced, type_=Text))
        .table_valued(column("kind", Integer), column("word", Text))
        .render_derived(name="parsed")
    )
    compounds = schema_function(tables, "compound_words", content, type_=Text)
    spelled = func.regexp_matches(content, SIGNED, "g", type_=ARRAY(Text))
    several = (
        select(parsed.c.word, true().label("is_plain")).where(parsed.c.kind != BLANK),
        select(compounds.label("word"), false()),
        select(func.array_to_string(spelled, ""), false()),
    )
    return union(*(words.correlate(tables.chunks) for words in several)).subquery("words")
