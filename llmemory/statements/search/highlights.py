"""Which words of a hit are the query's, for highlights."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Integer, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects.postgresql import TSVECTOR

from llmemory.models import Tables
from llmemory.statements.functions import schema_function
from llmemory.statements.search.shape import SearchShape
from llmemory.text.highlighting import UNSPACED

__all__ = ["matched_words"]

BLANK = 12
"""Type of what PostgreSQL's parser finds between words."""


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
    spaced = func.regexp_replace(chunks.c.content, f"[{UNSPACED}]", " ", "g")
    parsed = (
        func.ts_parse("default", spaced)
        .table_valued(column("kind", Integer), column("word", Text))
        .render_derived(name="parsed")
    )
    words = (
        select(parsed.c.word)
        .distinct()
        .where(parsed.c.kind != BLANK)
        .correlate(chunks)
        .subquery("words")
    )
    return (
        select(func.array_agg(words.c.word))
        .where(lexemes(chunks.c.language, words.c.word).bool_op("&&")(wanted))
        .correlate(chunks)
        .scalar_subquery()
    )
