"""chroma, in this process with its files in a folder; it searches by vectors alone."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import chromadb
from chromadb.config import Settings

BATCH = 256


class Peer:
    """One collection. Its HNSW index cannot be left out."""

    version = version("chromadb")

    def __init__(self, known: Any, url: str, with_index: bool, folder: Any) -> None:
        self._known = known
        self._client = chromadb.PersistentClient(
            str(folder / "chroma"), Settings(anonymized_telemetry=False)
        )

    async def start(self) -> None:
        """Make the collection."""
        self._collection = self._client.create_collection(
            "peer", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    async def add(self, passages: list[tuple[str, str]]) -> None:
        """Add passages."""
        for start in range(0, len(passages), BATCH):
            keys, texts = zip(*passages[start : start + BATCH], strict=True)
            self._collection.add(
                ids=list(keys),
                documents=list(texts),
                embeddings=[self._known[text] for text in texts],
                metadatas=[{"owner": "peer"}] * len(keys),
            )

    async def search(self, query: str) -> list[str]:
        """Return the ids of the ten nearest."""
        found = self._collection.query(
            query_embeddings=[self._known[query]], n_results=10, where={"owner": "peer"}
        )
        return found["ids"][0]

    async def stop(self) -> None:
        """Do nothing: the folder is deleted."""
