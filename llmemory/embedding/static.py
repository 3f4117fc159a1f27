"""The embedder of the embedded default: token vectors, averaged. No network, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import numpy as np

from llmemory.concurrency.forks import ProcessLock
from llmemory.embedding.base import Purpose
from llmemory.errors import ConfigurationError
from llmemory.types import Vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["StaticEmbedder"]

_loading = ProcessLock()


class StaticEmbedder:
    """Averages the WordLlama vectors of a text's tokens: fast, small, of modest quality.

    Weights (16 MB) and tokenizer come with the ``wordllama`` wheel, extra ``embedded``, and are
    read once per process. Source of the method: Miller 2024, WordLlama.

    Raises:
        ConfigurationError: The extra is not installed.
    """

    provider = "static"
    model = "wordllama-l2-supercat"
    dimensions = 256
    # A weak vector arm: words weigh more (measured in benchmarks/).
    alpha = 0.3

    def __init__(self) -> None:
        self._folder = _package_folder()

    async def embed(self, texts: Sequence[str], *, purpose: Purpose) -> Vectors:
        """Return vectors of length 1, shape ``(len(texts), 256)``, computed in a worker thread."""
        return await anyio.to_thread.run_sync(self._embed, list(texts))

    def _embed(self, texts: list[str]) -> Vectors:
        tokenizer, weights = _load(self._folder)
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, encoding in enumerate(tokenizer.encode_batch(texts, add_special_tokens=False)):
            if encoding.ids:
                vectors[row] = weights[encoding.ids].mean(axis=0)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def is_installed() -> bool:
    """Return whether the weights are there."""
    return find_spec("wordllama") is not None and find_spec("tokenizers") is not None


def _package_folder() -> Path:
    # The package's own loader looks in the wrong folder and then asks the network.
    specification = find_spec("wordllama")
    if specification is None or specification.origin is None:
        raise ConfigurationError(
            'The static embedder is not installed. Run `pip install ".[embedded]"`, or '
            "pass an embedder."
        )
    return Path(specification.origin).parent


def _load(folder: Path) -> tuple[Tokenizer, NDArray[Any]]:
    with _loading:
        return _load_once(folder)


@lru_cache(maxsize=1)
def _load_once(folder: Path) -> tuple[Tokenizer, NDArray[Any]]:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # It would hold up to 10,000 whole texts, 100 MB: this tokenizer does not cut into words first.
    tokenizer.model._resize_cache(0)
    tensors = load_file(str(folder / "weights" / "l2_supercat_256.safetensors"))
    (weights,) = tensors.values()
    return tokenizer, weights.astype(np.float32)
