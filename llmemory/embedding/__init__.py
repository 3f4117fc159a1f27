"""Embedders: what turns texts into vectors."""

from __future__ import annotations

from llmemory.embedding.base import Embedder, Purpose
from llmemory.errors import ConfigurationError
from llmemory.settings import Settings

__all__ = ["Embedder", "Purpose", "from_settings"]


def from_settings(settings: Settings) -> Embedder:
    """Return the embedder that the settings name.

    Raises:
        ConfigurationError: None is named and none is installed.
    """
    if settings.embedder == "hash":
        from llmemory.embedding.testing import HashEmbedder

        return HashEmbedder(settings.hash_dimensions)
    key = settings.openai_api_key
    if settings.embedder == "openai" or (settings.embedder == "auto" and key is not None):
        if key is None:
            raise ConfigurationError(
                "The OpenAI embedder needs a key: pass openai_api_key or set "
                "LLMEMORY_OPENAI_API_KEY."
            )
        from llmemory.embedding.openai import OpenAIEmbedder

        return OpenAIEmbedder(
            key,
            model=settings.openai_model,
            dimensions=settings.openai_dimensions,
            base_url=settings.openai_base_url,
        )
    if settings.embedder == "local":
        from llmemory.embedding.local import LocalEmbedder

        return LocalEmbedder(
            settings.local_model,
            dimensions=settings.local_dimensions,
            name=settings.local_name,
            document_prompt=settings.local_document_prompt,
            query_prompt=settings.local_query_prompt,
            device=settings.local_device,
        )
    from llmemory.embedding import static

    if settings.embedder == "auto" and not static.is_installed():
        raise ConfigurationError(
            "No embedder is set up. Pass embedder=... or openai_api_key=..., or install the "
            "static one: "
            '`pip install ".[embedded]"`.'
        )
    return static.StaticEmbedder()
