"""Which words of a hit are the query's, for highlights."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Integer, Text, bindparam, column, func, select, text

from llmemory.models import Tables, quoted_identifier
from llmemory.statements.search.shape import SearchShape

__all__ = ["matched_words"]

BLANK = 12
"""Type of what PostgreSQL's parser finds between words."""


def matched_words(tables: Tables, shape: SearchShape) -> ColumnElement[Any]:
    """Return the words of a chunk, as they are written there, that share a lexeme with the query.

    The query is analysed in its own language, or else in the chunk's. Every word is analysed by
    itself, by the same function as the whole chunk was.
    """
    # SQLAlchemy quotes a function's schema only in part, so its name is written out here.
    function = f"{quoted_identifier(tables.schema)}.search_vector".replace(":", r"\:")
    query = text(
        f"{function}({':language' if shape.language_given else 'chunks.language'}, :query_text)"
    ).bindparams(bindparam("query_text", type_=Text))
    if shape.language_given:
        query = query.bindparams(bindparam("language", type_=Text))
    # In a subquery of its own, so that the query is analysed once and not for every word.
    wanted = select(func.tsvector_to_array(query, type_=ARRAY(Text))).scalar_subquery()
    parsed = (
        func.ts_parse("default", tables.chunks.c.content)
        .table_valued(column("kind", Integer), column("word", Text))
        .render_derived(name="parsed")
    )
    words = (
        select(parsed.c.word)
        .distinct()
        .where(parsed.c.kind != BLANK)
        .correlate(tables.chunks)
        .subquery("words")
    )
    found = func.tsvector_to_array(text(f"{function}(chunks.language, words.word)"))
    return (
        select(func.array_agg(words.c.word))
        .where(found.bool_op("&&")(wanted))
        .correlate(tables.chunks)
        .scalar_subquery()
    )
