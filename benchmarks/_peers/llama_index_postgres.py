"""llama-index-vector-stores-postgres: PGVectorStore with hybrid search."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.postgres import PGVectorStore

BATCH = 256
HNSW = {"hnsw_m": 16, "hnsw_ef_construction": 64, "hnsw_dist_method": "vector_cosine_ops"}


class Peer:
    """One table."""

    version = version("llama-index-vector-stores-postgres")

    def __init__(self, known: Any, url: str, with_index: bool, folder: Any) -> None:
        self._known = known
        self._store = PGVectorStore.from_params(
            connection_string=url.replace("postgresql://", "postgresql+psycopg2://"),
            async_connection_string=url.replace("postgresql://", "postgresql+asyncpg://"),
            table_name="peer_llama_index",
            embed_dim=len(next(iter(known.values()))),
            hybrid_search=True,
            use_jsonb=True,
            hnsw_kwargs=dict(HNSW) if with_index else None,
        )

    async def start(self) -> None:
        """Make the table and its indexes."""
        self._store._initialize()

    async def add(self, passages: list[tuple[str, str]]) -> None:
        """Add passages."""
        for start in range(0, len(passages), BATCH):
            await self._store.async_add(
                [
                    TextNode(id_=key, text=text, embedding=self._known[text].tolist())
                    for key, text in passages[start : start + BATCH]
                ]
            )

    async def search(self, query: str) -> list[str]:
        """Return the ids of the ten best: it fuses nothing and puts one list behind the other."""
        result = await self._store.aquery(
            VectorStoreQuery(
                query_embedding=self._known[query].tolist(),
                query_str=query,
                similarity_top_k=10,
                sparse_top_k=10,
                mode=VectorStoreQueryMode.HYBRID,
            )
        )
        return list(result.ids or [])[:10]

    async def stop(self) -> None:
        """Close."""
        await self._store.close()
