"""Stores that live in the process, to search beside: chroma and lancedb, where installed."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Row", "Store", "installed"]

Row = dict[str, Any]
"""A vector with what filters ask for: id, owner, vector, kind, day and the flags of metadata."""

BATCH = 2_000


class Store(Protocol):
    """What is measured of a store."""

    name: str

    def add(self, rows: Sequence[Row]) -> None:
        """Store rows."""

    def search(self, owner: str, condition: Row, vector: Any, limit: int) -> set[str]:
        """Return the ids of the nearest rows of an owner."""


class Chroma:
    """An ephemeral collection of chroma."""

    name = "chroma"

    def __init__(self) -> None:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        client = chromadb.EphemeralClient(settings=settings)
        self._collection = client.create_collection("bench", metadata={"hnsw:space": "cosine"})

    def add(self, rows: Sequence[Row]) -> None:
        """Store rows."""
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            self._collection.add(
                ids=[row["id"] for row in part],
                embeddings=[row["vector"] for row in part],
                metadatas=[
                    {name: row[name] for name in row if name not in {"id", "vector"}}
                    for row in part
                ],
            )

    def search(self, owner: str, condition: Row, vector: Any, limit: int) -> set[str]:
        """Return the ids of the nearest rows of an owner."""
        wanted = [{"owner": owner}, *({name: value} for name, value in condition.items())]
        where: Any = wanted[0] if len(wanted) == 1 else {"$and": wanted}
        found = self._collection.query(query_embeddings=[vector], n_results=limit, where=where)
        return set(found["ids"][0])


class Lance:
    """A table of lancedb in a folder for the time being; vectors are read one by one."""

    name = "lancedb"

    def __init__(self) -> None:
        import lancedb

        self._folder = tempfile.TemporaryDirectory()
        self._database = lancedb.connect(self._folder.name)
        self._table: Any = None

    def add(self, rows: Sequence[Row]) -> None:
        """Store rows."""
        if self._table is None:
            self._table = self._database.create_table("bench", list(rows))
        else:
            self._table.add(list(rows))

    def search(self, owner: str, condition: Row, vector: Any, limit: int) -> set[str]:
        """Return the ids of the nearest rows of an owner."""
        terms = [f"owner = '{owner}'", *map(_term, condition.items())]
        query = self._table.search(vector).distance_type("cosine")
        found = query.where(" AND ".join(terms), prefilter=True).select(["id"]).limit(limit)
        return {row["id"] for row in found.to_list()}


def _term(condition: tuple[str, Any]) -> str:
    name, value = condition
    if isinstance(value, dict):
        return f"{name} >= {value['$gte']}"
    if isinstance(value, bool):
        return f"{name} = {str(value).lower()}"
    return f"{name} = '{value}'"


def installed() -> list[Store]:
    """Return a store of each kind that is installed."""
    kinds: dict[str, type[Any]] = {"chromadb": Chroma, "lancedb": Lance}
    return [kind() for module, kind in kinds.items() if importlib.util.find_spec(module)]
