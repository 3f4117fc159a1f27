"""Local models that embedders share, each in a process that is started anew if it dies."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

from llmemory.concurrency.forks import ProcessLock
from llmemory.embedding.local_process import InProcess, ModelProcess
from llmemory.errors import ClosedError, EmbeddingError, ProviderUnavailable

if TYPE_CHECKING:
    from llmemory.types import Vectors

__all__ = ["SharedModel"]

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_sharing = ProcessLock()


class SharedModel:
    """A model in its process, which all embedders of this process with that model share.

    It is started when it is first needed, and again after it died. Requests of all threads are
    answered one after the other. A fork of this process starts its own.

    Attributes:
        pieces: How many words and pieces of words its vocabulary has of each script; empty until
            it was loaded, or if it does not say.
    """

    def __init__(self, source: str, device: str | None) -> None:
        self._source = source
        self._device = device
        self.pieces: Mapping[str, int] = {}
        self._users: WeakSet[object] = WeakSet()
        self._process: ModelProcess | None = None
        self._is_closed = False
        self._turn = threading.Lock()

    @staticmethod
    def shared(source: str, device: str | None, user: object) -> SharedModel:
        """Return a model, which ends with the last of its users or when that leaves."""
        with _sharing:
            model = _models.get((source, device))
            if model is None:
                model = _models[source, device] = SharedModel(source, device)
            model._users.add(user)
            return model

    def leave(self, user: object) -> None:
        """End the process if nobody else uses it, whatever it is at."""
        with _sharing:
            self._users.discard(user)
            if self._users or self._is_closed:
                return
            _models.pop((self._source, self._device), None)
        self.close()

    def close(self) -> None:
        """End the process. Whoever waits for it gets a ClosedError."""
        self._is_closed = True
        if (running := self._process) is not None:
            running.kill()
        with self._turn:
            self._drop()

    def dimensions(self) -> int:
        """Return the length of the model's vectors.

        Raises:
            ConfigurationError: The model cannot be loaded.
            ProviderUnavailable: The process died, twice.
        """
        with self._turn:
            return self._ask(lambda process: process.dimensions)

    def embed(
        self, texts: Sequence[str], *, unless: threading.Event, **options: Any
    ) -> Vectors | None:
        """Return a vector for each text, at most as many dimensions as wanted.

        Args:
            unless: Once this is set, nobody waits for the vectors, and None is returned.
            options: ``purpose``, ``prompt`` and ``dimensions``.

        Raises:
            ConfigurationError: The model cannot be loaded.
            EmbeddingError: It failed.
            ProviderUnavailable: The process died, twice.
            ClosedError: The process was ended by ``leave``.
        """
        import numpy as np

        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        with self._turn:
            if unless.is_set():
                return None
            header, matrix = self._ask(lambda process: process.embed(options, parts))
        if (name := header.get("error")) is not None:
            hint = " Its memory was too small: pass a smaller batch_size."
            raise EmbeddingError(
                f"The model {self._source!r} failed with {name}; nothing was stored."
                f"{hint if header['out_of_memory'] else ''}"
            ) from InProcess(header["trace"])
        return np.frombuffer(matrix[0], dtype=np.float32).reshape(len(texts), -1)

    def forget(self) -> None:
        """Leave the process to the parent that this one was forked from."""
        self._turn = threading.Lock()
        self._drop()

    def _ask(self, use: Callable[[ModelProcess], T]) -> T:
        """Use the process, which is started anew, once, if it died."""
        is_second = False
        while True:
            try:
                return use(self._running())
            except (EOFError, OSError) as error:
                if self._is_closed:
                    raise _closed() from None
                how = str(error) if self._process is None else self._process.last_words()
                self._drop()
                if is_second:
                    raise ProviderUnavailable(
                        f"The process of the model {self._source!r} died, and again when it was "
                        "started anew. Is there enough memory? See the cause above."
                    ) from InProcess(how)
                _logger.warning("The process of the model %r died; starting anew.", self._source)
                is_second = True
            except BaseException:
                # Interrupted, it may be in the middle of an answer.
                self._drop()
                raise

    def _running(self) -> ModelProcess:
        if self._is_closed:
            raise _closed()
        if self._process is not None and self._process.owner != os.getpid():
            self._drop()
        if self._process is None:
            self._process = ModelProcess(self._source, self._device)
        self._process.load()
        self.pieces = self._process.pieces
        return self._process

    def _drop(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


def _closed() -> ClosedError:
    return ClosedError("The embedder was closed. Make a new one.")


_models: WeakValueDictionary[tuple[str, str | None], SharedModel] = WeakValueDictionary()


@atexit.register
def _close_all() -> None:
    for model in list(_models.values()):
        model.close()


def _forget_all() -> None:
    for model in list(_models.values()):
        model.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
