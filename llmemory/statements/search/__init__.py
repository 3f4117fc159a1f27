"""The search: two arms, by meaning and by words, fused and joined with their documents.

Every search is one statement. The arms are exact: each reads the owner's own rows.
"""

from __future__ import annotations

from llmemory.statements.search.composable import composable, settings_of
from llmemory.statements.search.indexed import NEAREST, RESCORED
from llmemory.statements.search.nearest import seem_few
from llmemory.statements.search.query_terms import EXCLUDED
from llmemory.statements.search.shape import Passing, SearchShape
from llmemory.statements.search.statement import ROWS_IF_PLANNED, search, search_text

__all__ = [
    "EXCLUDED",
    "NEAREST",
    "RESCORED",
    "ROWS_IF_PLANNED",
    "Passing",
    "SearchShape",
    "composable",
    "search",
    "search_text",
    "seem_few",
    "settings_of",
]
