"""A local model's process: starting it, speaking with it, ending it.

Importing torch, loading a model and embedding with it hold the interpreter's lock for up to a
second at a time, in a thread as well. Neither multiprocessing nor anyio's worker processes would
do: the one runs the application's script again and refuses daemonic processes, such as Celery's,
and the others belong to one event loop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from multiprocessing.spawn import get_executable
from typing import IO, Any, cast

from llmemory.concurrency.threads import start_process
from llmemory.embedding import local_worker
from llmemory.errors import ConfigurationError

__all__ = ["InProcess", "ModelProcess"]

DYING_S = 1.0
LAST_WORDS_BYTES = 2000


class InProcess(Exception):
    """What happened in the process: the cause of an error here."""


class ModelProcess:
    """A process that was started; it ends with this object."""

    def __init__(self, source: str, device: str | None) -> None:
        self.owner = os.getpid()
        self.dimensions = 0
        self.pieces: dict[str, int] = {}
        self._source = source
        self._device = device
        options = {"path": list(map(os.fspath, sys.path)), "source": source, "device": device}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = start_process(
            [get_executable(), "-P", local_worker.__file__, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            bufsize=0,
            env={"HF_HUB_DISABLE_PROGRESS_BARS": "1", **os.environ},
        )
        self._requests = cast("FileIO", self._process.stdin)
        self._answers = cast("FileIO", self._process.stdout)
        self._finalizer = weakref.finalize(self, _end, self._process, self._output, self.owner)
        # Before that, threads that use it are to know that it is no accident: ``local_model``.
        self._finalizer.atexit = False

    def load(self) -> None:
        """Wait for the model, the first time.

        Raises:
            ConfigurationError: It cannot be loaded.
            EOFError: The process died.
        """
        if self.dimensions:
            return
        header, _ = local_worker.receive(self._answers)
        if (name := header.get("error")) is not None:
            raise ConfigurationError(
                f"LocalEmbedder cannot load {self._source!r}"
                f"{'' if self._device is None else f' on {self._device!r}'}: {name}, see "
                "the cause above. Pass the name of a sentence-transformers model or the path "
                "of a folder that holds one; without a network it must be on disk already."
            ) from InProcess(header["trace"])
        self.dimensions = header["dimensions"]
        self.pieces = header["pieces"]

    def embed(self, options: dict[str, Any], parts: Sequence[bytes]) -> local_worker.Message:
        """Return its answer to a request.

        Raises:
            EOFError: It died.
            OSError: It died.
        """
        local_worker.send(self._requests, options, parts)
        return local_worker.receive(self._answers)

    def kill(self) -> None:
        """Have it die at once, so that whoever waits for an answer learns of it."""
        if self.owner == os.getpid():
            self._process.kill()

    def end(self) -> None:
        """End it; calling again does nothing."""
        # Not by calling the finalizer: at the interpreter's exit, once others have run, it is deaf.
        if self._finalizer.detach() is not None:
            _end(self._process, self._output, self.owner)

    def last_words(self) -> str:
        """Say how it died, and what it printed at the end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING_S)
        self._output.seek(-min(LAST_WORDS_BYTES, self._output.seek(0, os.SEEK_END)), os.SEEK_END)
        printed = self._output.read().decode(errors="replace")
        return f"exit code {self._process.returncode}\n{printed}"


def _end(process: subprocess.Popen[bytes], output: IO[bytes], owner: int) -> None:
    is_ours = owner == os.getpid()
    if is_ours:
        process.kill()
    for stream in (process.stdin, process.stdout, output):
        if stream is not None:
            stream.close()
    if is_ours:
        process.wait()
    else:
        # Learns that it is no child of this process.
        process.poll()
