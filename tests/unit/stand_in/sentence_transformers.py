"""A package of this name for processes of models: without torch, and it does what a text says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np


class SentenceTransformer:
    """Its vectors hold the lengths of prompt and text.

    While its process lives, a FIFO ``alive`` in the model's folder is open for writing.
    """

    def __init__(self, source: str, device: str | None) -> None:
        if device == "none":
            raise OSError("no such device: none")
        if device == "broken":
            os.kill(os.getpid(), signal.SIGKILL)
        if (fifo := Path(source) / "alive").exists():
            self._alive = fifo.open("wb")

    def get_sentence_embedding_dimension(self) -> int:
        return 3

    def encode_document(
        self, texts: list[str], *, prompt: str | None, batch_size: int, show_progress_bar: bool
    ) -> np.ndarray:
        for text in texts:
            match text.split():
                case ["print"]:
                    print("something")
                case ["die"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                case ["fail", words]:
                    raise ValueError(words)
                case ["allocate", words]:
                    raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {words}")
                case ["sleep", seconds]:
                    time.sleep(float(seconds))
        return np.array([[len(prompt or ""), len(text), 1] for text in texts], dtype=np.float64)

    encode_query = encode_document
