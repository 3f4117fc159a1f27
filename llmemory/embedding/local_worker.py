"""What runs in the process of a local model: loads it, then embeds until its input ends.

``local_process`` runs this file, which imports nothing of the library, to start quickly. A message
is a JSON header that says how long the byte strings behind it are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from io import FileIO
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from llmemory.types import Vectors

__all__ = ["receive", "script_of", "send"]

Message: TypeAlias = tuple[dict[str, Any], list[bytearray]]

_SIZE = struct.Struct("!I")


def send(stream: FileIO, header: dict[str, Any], parts: Sequence[bytes | memoryview] = ()) -> None:
    """Write a message.

    Raises:
        OSError: Nobody reads it.
    """
    sizes = [memoryview(part).nbytes for part in parts]
    head = json.dumps({**header, "sizes": sizes}).encode()
    for part in (_SIZE.pack(len(head)) + head, *parts):
        left = memoryview(part).cast("B")
        while left:
            left = left[stream.write(left) :]


def receive(stream: FileIO) -> Message:
    """Read a message.

    Raises:
        EOFError: Whoever wrote has ended.
    """
    (size,) = _SIZE.unpack(_read(stream, _SIZE.size))
    header = json.loads(_read(stream, size))
    return header, [_read(stream, size) for size in header.pop("sizes")]


def _read(stream: FileIO, size: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        count = stream.readinto(left)
        if not count:
            raise EOFError
        left = left[count:]
    return data


def script_of(letter: str) -> str:
    """Return what a letter's name in Unicode begins with: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(letter, "?").split()[0]


class _Model:
    def __init__(self, source: str, device: str | None) -> None:
        from sentence_transformers import (  # pyright: ignore[reportMissingImports]
            SentenceTransformer,
        )

        self._transformer: Any = SentenceTransformer(source, device=device)
        # Its name until sentence-transformers 5.
        ask = getattr(self._transformer, "get_embedding_dimension", None)
        ask = ask or self._transformer.get_sentence_embedding_dimension
        self.dimensions: int = ask() or len(self._transformer.encode("x"))

    def pieces(self) -> Mapping[str, int]:
        """Return how many words and pieces of words the vocabulary has of each script."""
        try:
            tokenizer = self._transformer.tokenizer
            decoder = getattr(tokenizer, "backend_tokenizer", tokenizer).decoder
            pieces = [decoder.decode([piece]) for piece in tokenizer.get_vocab()]
        except Exception:
            # A model may have no tokenizer, or one of its own making, and is as good without.
            return {}
        letters = (next(filter(str.isalpha, piece), "") for piece in pieces)
        return Counter(script_of(letter) for letter in letters if letter)

    def embed(
        self, texts: list[str], *, purpose: str, prompt: str | None, dimensions: int
    ) -> Vectors:
        import numpy as np

        encode = getattr(self._transformer, f"encode_{purpose}")
        made = encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)
        made = made[:, :dimensions].astype(np.float32)
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        vectors: Vectors = made / np.maximum(lengths, 1e-12)
        return vectors


def main(source: str, device: str | None) -> None:
    """Load the model, say how long its vectors are, and answer one request after the other."""
    requests, answers = _own_streams()
    waiting: SimpleQueue[Message] = SimpleQueue()
    Thread(target=_receive_all, args=(requests, waiting), daemon=True).start()
    try:
        model = _Model(source, device)
    except Exception as error:
        send(answers, {**_failure(error), "trace": "".join(traceback.format_exception(error))})
        return
    send(answers, {"dimensions": model.dimensions, "pieces": model.pieces()})
    while True:
        header, parts = waiting.get()
        try:
            texts = [part.decode("utf-8", "surrogatepass") for part in parts]
            vectors = model.embed(texts, **header)
        except Exception as error:
            send(answers, _failure(error))
        else:
            send(answers, {}, [vectors.data])


def _own_streams() -> tuple[FileIO, FileIO]:
    """Return where requests come from and answers go to, which nothing else reads or writes.

    What a library prints goes where errors go; one that asks a question meets the end of a file.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return FileIO(requests, "rb"), FileIO(answers, "wb")


def _receive_all(requests: FileIO, waiting: SimpleQueue[Message]) -> None:
    while True:
        try:
            message = receive(requests)
        except EOFError:
            # The application has ended, or wants no more: also not what is loaded just now.
            os._exit(0)
        waiting.put(message)


def _failure(error: Exception) -> dict[str, Any]:
    """Say what failed, and where, but not in the error's words: they may quote a text."""
    is_memory = re.search("allocate memory|out of memory", str(error)) is not None
    return {
        "error": type(error).__name__,
        "trace": "".join(traceback.format_tb(error.__traceback__)),
        "out_of_memory": is_memory or isinstance(error, MemoryError),
    }


if __name__ == "__main__":
    # A signal to the whole group, such as of Ctrl-C, is the application's to answer.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    sys.path[:] = options.pop("path")
    main(**options)
