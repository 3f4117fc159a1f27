"""Measures one library on prepared passages, in an environment of its own; prints JSON.

Run by ``peers.py``: python run.py PEER FOLDER DATABASE_URL WITH_INDEX WRITERS
"""

from __future__ import annotations

import asyncio
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np


async def main(name: str, folder: Path, url: str, with_index: bool, writers: int) -> None:
    """Add the passages, search with each query, print the figures."""
    passages = json.loads((folder / "passages.json").read_text())
    queries = json.loads((folder / "queries.json").read_text())
    vectors = np.load(folder / "vectors.npy")
    query_vectors = np.load(folder / "query_vectors.npy")
    known = {text: vectors[row] for row, text in enumerate(passages.values())}
    known |= {text: query_vectors[row] for row, text in enumerate(queries.values())}
    peer = importlib.import_module(name).Peer(known, url, with_index, folder)
    await peer.start()

    keys = list(passages)
    started = time.perf_counter()
    await asyncio.gather(
        *(
            peer.add([(key, passages[key]) for key in keys[number::writers]])
            for number in range(writers)
        )
    )
    adding_s = time.perf_counter() - started

    rankings = {}
    times = []
    for key, text in queries.items():
        started = time.perf_counter()
        rankings[key] = await peer.search(text)
        times.append(time.perf_counter() - started)
    await peer.stop()
    figures = {
        "version": peer.version,
        "adds_per_s": len(passages) / adding_s,
        "search_p50_ms": statistics.median(times) * 1000,
        "rankings": rankings,
    }
    print("\n" + json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1", int(sys.argv[5]))
    )
