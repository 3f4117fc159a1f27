"""Models of sentence-transformers, run in this process. Needs the extra ``local``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio
import anyio.to_thread
import numpy as np

from llmemory.concurrency.forks import ProcessLock
from llmemory.embedding.base import MOST_DIMENSIONS, Purpose
from llmemory.errors import ConfigurationError
from llmemory.types import Vectors

__all__ = ["LocalEmbedder"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

_loading = ProcessLock()


class LocalEmbedder:
    """Embeds with a model of sentence-transformers, on this machine's processors.

    The model is loaded once in a process: all embedders of the same model and device share it,
    and it goes with the last of them. Texts are embedded in a worker thread, `batch_size` at a
    time, so that the event loop goes on and a query need not wait for the end of a long document.
    Loading does hold up a loop, for a second or two: make the embedder before the loop runs.
    A model works for one thread at a time, whatever the number of event loops and embedders.

    What a text has beyond the model's longest input is not seen: 256 tokens, some 1,000
    characters of English, for the default model. Let ``chunk_size`` fit the model.

    A process forked from one that has loaded the model uses it too, in a single thread, for
    torch's pool of threads does not survive a fork. Accelerators cannot be used across one.

    Args:
        model: Name of a model on the Hugging Face hub, which is downloaded if it is not on disk,
            or the path of a folder that holds one.
        dimensions: Length of the vectors. Fewer than the model's own keep the first ones, which
            is good for models that were trained for it. None asks the model, which is loaded at
            once for that; else it is loaded at its first use.
        name: Stored beside the vectors. None takes `model` as it is given: pass one for a folder
            that may move, and another one when the prompts change.
        document_prompt: Put before each document. None takes the model's own prompt, if it has
            one.
        query_prompt: Put before each query. None takes the model's own prompt, if it has one.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, as torch calls it. None takes the best there is.
        batch_size: Texts that the model is given at a time, 1 to 10,000.

    Raises:
        ConfigurationError: The extra is not installed, the model cannot be loaded, or an argument
            is wrong.

    Example:
        >>> embedder = LocalEmbedder("intfloat/e5-small-v2", query_prompt="query: ",
        ...                          document_prompt="passage: ")
    """

    provider = "local"
    # Where words and vectors weigh the same, small models rank best (measured in benchmarks/).
    alpha = 0.5

    def __init__(
        self,
        model: str | PathLike[str] = DEFAULT_MODEL,
        *,
        dimensions: int | None = None,
        name: str | None = None,
        document_prompt: str | None = None,
        query_prompt: str | None = None,
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        if find_spec("sentence_transformers") is None:
            raise ConfigurationError('LocalEmbedder needs an extra: `pip install ".[local]"`.')
        for argument, value, most in (
            ("dimensions", dimensions, MOST_DIMENSIONS),
            ("batch_size", batch_size, 10_000),
        ):
            if value is not None and not 1 <= value <= most:
                raise ConfigurationError(f"LocalEmbedder: {argument} must be 1 to {most}.")
        self._source = _source(model)
        self.model = os.fspath(model) if name is None else name
        self._prompts = {"document": document_prompt, "query": query_prompt}
        self._device = device
        self._batch_size = batch_size
        self._least = dimensions or 1
        self._loaded: _Model | None = None
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = (
            WeakKeyDictionary()
        )
        self.dimensions = self._load().dimensions if dimensions is None else dimensions

    def __repr__(self) -> str:
        return f"LocalEmbedder({self.model!r}, dimensions={self.dimensions})"

    async def embed(self, texts: Sequence[str], *, purpose: Purpose) -> Vectors:
        """Return vectors of length 1, shape ``(len(texts), dimensions)``, float32.

        Raises:
            ConfigurationError: The model cannot be loaded.
        """
        # One thread of an event loop's is enough: more of them would only wait for the model.
        turns = self._turns.setdefault(asyncio.get_running_loop(), anyio.CapacityLimiter(1))
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        # Texts of a batch are padded to the longest of them.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(texts), self._batch_size):
            batch = order[start : start + self._batch_size]
            vectors[batch] = await anyio.to_thread.run_sync(
                self._encode, [texts[number] for number in batch], purpose, limiter=turns
            )
        return vectors

    def _encode(self, texts: list[str], purpose: Purpose) -> Vectors:
        made = self._load().encode(texts, purpose, self._prompts[purpose])
        made = made[:, : self.dimensions].astype(np.float32)
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        vectors: Vectors = made / np.maximum(lengths, 1e-12)
        return vectors

    def _load(self) -> _Model:
        if self._loaded is None:
            loaded = _shared_model(self._source, self._device)
            if self._least > loaded.dimensions:
                raise ConfigurationError(
                    f"LocalEmbedder: the vectors of {self._source!r} have {loaded.dimensions} "
                    f"dimensions, not {self._least}. Change dimensions or the model."
                )
            self._loaded = loaded
        return self._loaded


class _Model:
    """A loaded model, which works for one thread at a time."""

    def __init__(self, source: str, device: str | None) -> None:
        import torch  # pyright: ignore[reportMissingImports]
        from sentence_transformers import (  # pyright: ignore[reportMissingImports]
            SentenceTransformer,
        )

        self._transformer: Any = SentenceTransformer(source, device=device)
        # Its name until sentence-transformers 5.
        ask = getattr(self._transformer, "get_embedding_dimension", None)
        ask = ask or self._transformer.get_sentence_embedding_dimension
        self.dimensions: int = ask() or len(self._transformer.encode("x"))
        # A tokenizer that two threads use at once fails.
        self._using = ProcessLock()
        # Forked, it would wait for ever for the threads that stayed with the parent.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

    def encode(self, texts: list[str], purpose: Purpose, prompt: str | None) -> Vectors:
        encode = getattr(self._transformer, f"encode_{purpose}")
        with self._using:
            vectors: Vectors = encode(
                texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False
            )
        return vectors


_models: WeakValueDictionary[tuple[str, str | None], _Model] = WeakValueDictionary()


def _shared_model(source: str, device: str | None) -> _Model:
    with _loading:
        model = _models.get((source, device))
        if model is None:
            try:
                model = _models[source, device] = _Model(source, device)
            except Exception as error:
                raise ConfigurationError(
                    f"LocalEmbedder cannot load {source!r}"
                    f"{'' if device is None else f' on {device!r}'}: {type(error).__name__}, see "
                    "the cause above. Pass the name of a sentence-transformers model or the path "
                    "of a folder that holds one; without a network it must be on disk already."
                ) from error
        return model


def _source(model: str | PathLike[str]) -> str:
    text = os.fspath(model) if isinstance(model, str | PathLike) else ""
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError("LocalEmbedder: model must be a name or a path.")
    path = Path(text).expanduser()
    is_path = not isinstance(model, str) or path.is_absolute() or text.startswith((".", "~"))
    if path.is_dir():
        return str(path.resolve())
    if is_path:
        raise ConfigurationError(
            f"LocalEmbedder: there is no folder {text!r}. Pass the path of a folder that holds a "
            "sentence-transformers model, or the name of one."
        )
    return text
