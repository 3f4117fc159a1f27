"""Models of sentence-transformers, run on this machine. Needs the extra ``local``."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
import numpy as np

from llmemory.embedding.base import MOST_DIMENSIONS, Purpose
from llmemory.embedding.local_model import SharedModel
from llmemory.embedding.local_scripts import share_read
from llmemory.errors import ClosedError, ConfigurationError
from llmemory.types import Vectors

__all__ = ["LocalEmbedder"]

UNREAD_ALPHA = 0.1
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class LocalEmbedder:
    """Embeds with a model of sentence-transformers, on this machine's processors.

    The model is loaded and works in a process of its own, so that an event loop goes on meanwhile:
    torch is not imported here. All embedders of one model and device share the process. It is
    started when it is first needed, started anew if it dies, and ends with the last of its
    embedders, with ``aclose``, or with this process, however that ends. A fork of this process
    starts its own, which loads the model again.

    It embeds `batch_size` texts at a time, one batch after the other: a query need not wait for
    the end of a long document.

    What a text has beyond the model's longest input is not seen: 256 tokens, some 1,000
    characters of English, for the default model. Let ``chunk_size`` fit the model.

    Args:
        model: Name of a model on the Hugging Face hub, which is downloaded if it is not on disk,
            or the path of a folder that holds one.
        dimensions: Length of the vectors. Fewer than the model's own keep the first ones, which
            is good for models that were trained for it. None asks the model, which is loaded for
            that: at once, or in an event loop, which must not wait, when a memory first needs
            them.
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
        ProviderUnavailable: The model's process died twice while the model was loaded.

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
        source = _source(model)
        self.model = os.fspath(model) if name is None else name
        self._prompts = {"document": document_prompt, "query": query_prompt}
        self._batch_size = batch_size
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = (
            WeakKeyDictionary()
        )
        self._shared: SharedModel | None = SharedModel.shared(source, device, self)
        self._dimensions = dimensions
        if dimensions is None and not _is_in_event_loop():
            self._dimensions = self._shared.dimensions()

    def __repr__(self) -> str:
        return f"LocalEmbedder({self.model!r}, dimensions={self._dimensions})"

    @property
    def dimensions(self) -> int:
        """Length of the vectors. Waits for the model where it is not known yet."""
        if self._dimensions is None:
            self._dimensions = self._used().dimensions()
        return self._dimensions

    async def find_dimensions(self) -> None:
        """Ask the model for ``dimensions``, unless they are known, while the event loop goes on.

        Raises:
            ConfigurationError: It cannot be loaded.
            ProviderUnavailable: Its process died twice.
            ClosedError: ``aclose`` was called.
        """
        if self._dimensions is None:
            ask = self._used().dimensions
            self._dimensions = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)

    async def embed(self, texts: Sequence[str], *, purpose: Purpose) -> Vectors:
        """Return vectors of length 1, shape ``(len(texts), dimensions)``, float32.

        Raises:
            ConfigurationError: The model cannot be loaded.
            EmbeddingError: The model failed.
            ProviderUnavailable: Its process died twice.
            ClosedError: ``aclose`` was called.
        """
        model = self._used()
        await self.find_dimensions()
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        is_over = threading.Event()

        def embed(batch: list[int]) -> None:
            made = model.embed(
                [texts[number] for number in batch],
                purpose=purpose,
                prompt=self._prompts[purpose],
                dimensions=self.dimensions,
                unless=is_over,
            )
            if made is not None:
                vectors[batch] = self._checked(made)

        # One thread of an event loop's is enough: more of them would only wait for the model.
        turns = self._turns.setdefault(asyncio.get_running_loop(), anyio.CapacityLimiter(1))
        # Texts of a batch are padded to the longest of them.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        try:
            for start in range(0, len(texts), self._batch_size):
                batch = order[start : start + self._batch_size]
                await anyio.to_thread.run_sync(embed, batch, limiter=turns, abandon_on_cancel=True)
        finally:
            is_over.set()
        return vectors

    def alpha_for(self, query: str) -> float:
        """Return the weight of the vectors in a hybrid search for `query`, 0.1 to ``alpha``.

        It is the less, the more of the letters are of scripts that the model cannot read, of
        which its vocabulary has no words: what it makes of them finds little.
        """
        share = 1.0 if self._shared is None else share_read(query, self._shared.pieces)
        least = min(UNREAD_ALPHA, self.alpha)
        return least + (self.alpha - least) * share

    async def aclose(self) -> None:
        """End the model's process, unless another embedder shares it; calling again does nothing.

        Calls under way raise ClosedError then, as later ones do.
        """
        model, self._shared = self._shared, None
        if model is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(model.leave, self)

    def _used(self) -> SharedModel:
        if self._shared is None:
            raise ClosedError("The embedder was closed. Make a new one.")
        return self._shared

    def _checked(self, vectors: Vectors) -> Vectors:
        if (found := vectors.shape[1]) < self.dimensions:
            raise ConfigurationError(
                f"LocalEmbedder: the vectors of {self.model!r} have {found} dimensions, not "
                f"{self.dimensions}. Change dimensions or the model."
            )
        return vectors


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
