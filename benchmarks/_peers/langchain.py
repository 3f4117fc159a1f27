"""langchain-postgres: PGVectorStore with hybrid search and rank fusion, 20 candidates a side."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_postgres import PGEngine, PGVectorStore
from langchain_postgres.v2.hybrid_search_config import (
    HybridSearchConfig,
    reciprocal_rank_fusion,
)
from langchain_postgres.v2.indexes import HNSWIndex

TABLE = "peer_langchain"
BATCH = 256


class Known(Embeddings):
    """Looks up what was embedded before."""

    def __init__(self, known: Any) -> None:
        self._known = known

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of `texts`."""
        return [self._known[text].tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of `text`."""
        return self._known[text].tolist()


class Peer:
    """One table."""

    version = version("langchain-postgres")

    def __init__(self, known: Any, url: str, with_index: bool, folder: Any) -> None:
        self._embedder = Known(known)
        self._dimensions = len(next(iter(known.values())))
        self._engine = PGEngine.from_connection_string(
            url.replace("postgresql://", "postgresql+asyncpg://")
        )
        self._with_index = with_index

    async def start(self) -> None:
        """Make the table and its indexes."""
        hybrid = HybridSearchConfig(
            tsv_column="content_tsv",
            tsv_lang="pg_catalog.english",
            fusion_function=reciprocal_rank_fusion,
            fusion_function_parameters={"fetch_top_k": 10},
            primary_top_k=20,
            secondary_top_k=20,
        )
        await self._engine.ainit_vectorstore_table(
            TABLE,
            self._dimensions,
            id_column={"name": "langchain_id", "data_type": "TEXT", "nullable": False},
            overwrite_existing=True,
            hybrid_search_config=hybrid,
        )
        self._store = await PGVectorStore.create(
            self._engine, self._embedder, TABLE, hybrid_search_config=hybrid, k=10
        )
        await self._store.aapply_hybrid_search_index()
        if self._with_index:
            await self._store.aapply_vector_index(HNSWIndex(name="peer_langchain_hnsw"))

    async def add(self, passages: list[tuple[str, str]]) -> None:
        """Add passages."""
        for start in range(0, len(passages), BATCH):
            keys, texts = zip(*passages[start : start + BATCH], strict=True)
            await self._store.aadd_texts(list(texts), ids=list(keys))

    async def search(self, query: str) -> list[str]:
        """Return the ids of the ten best."""
        return [str(hit.id) for hit in await self._store.asimilarity_search(query, k=10)]

    async def stop(self) -> None:
        """Drop the table."""
        await self._engine.adrop_table(TABLE)
        await self._engine.close()
