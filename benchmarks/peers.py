"""The same passages, vectors and queries through other libraries: adding, searching, ranking.

Each library runs in a process and an environment of its own, which ``uv run`` makes from the
package index; one that cannot be installed or fails is named with the reason. The vectors are
those of the static embedder, filled up with zeros to the wanted length, and made beforehand.

Run: python benchmarks/peers.py FOLDER [--passages 5000] [--dimensions 1536] [--queries 100]
     [--index] [--rounds 1] [--peers llmemory,chroma] [--json FILE] --database-url postgresql://...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from quality import Collection, ndcg

from llmemory import StaticEmbedder


@dataclass(frozen=True)
class Library:
    """One of the libraries.

    Attributes:
        module: Which module of ``_peers`` runs it.
        requirement: What is installed for it; None means the environment of this script.
        index: What an HNSW index is to it: "chosen", "always" or "never" there.
    """

    name: str
    module: str
    requirement: str | None = None
    writers: int = 1
    index: str = "chosen"


@dataclass(frozen=True)
class Figures:
    """What was measured of a library; medians of the rounds."""

    name: str
    version: str
    index: bool
    adds_per_s: float
    search_p50_ms: float
    ndcg_10: float


LIBRARIES = [
    Library("llmemory", "llmemory_here"),
    Library("llmemory, 2 writers", "llmemory_here", writers=2),
    Library("langchain-postgres", "langchain", "langchain-postgres==0.0.19"),
    Library("llama-index", "llama_index_postgres", "llama-index-vector-stores-postgres==0.9.0"),
    Library("llmemory 0.5.0", "llmemory_050", "llmemory==0.5.0", index="always"),
    Library("chroma (vectors)", "chroma", "chromadb==1.5.9", index="always"),
]


async def prepare(collection: Collection, folder: Path, arguments: argparse.Namespace) -> None:
    """Write passages, queries and their vectors for all libraries."""
    embedder = StaticEmbedder()
    chosen = dict(list(collection.queries.items())[: arguments.queries])
    judged = {key for query in chosen for key in collection.judgments[query]}
    # Judged passages first, so that fewer passages make no other question of it.
    keys = sorted(collection.documents, key=lambda key: key not in judged)
    passages = {key: collection.documents[key] for key in keys[: arguments.passages]}
    for name, texts, purpose in (
        ("passages", passages, "document"),
        ("queries", chosen, "query"),
    ):
        made = await embedder.embed(list(texts.values()), purpose=purpose)  # type: ignore[arg-type]
        vectors = np.zeros((len(texts), max(arguments.dimensions, made.shape[1])), np.float32)
        vectors[:, : made.shape[1]] = made
        file = "vectors.npy" if name == "passages" else "query_vectors.npy"
        np.save(folder / file, vectors)
        (folder / f"{name}.json").write_text(json.dumps(texts))


def run(library: Library, folder: Path, url: str, *, with_index: bool) -> dict[str, Any]:
    """Run a library once.

    Raises:
        RuntimeError: It could not be installed, or failed; with the last line that it printed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for file in folder.glob("*.*"):
            (Path(scratch) / file.name).symlink_to(file)
        script = Path(__file__).with_name("_peers") / "run.py"
        command = [sys.executable]
        if library.requirement is not None:
            command = ["uv", "run", "--quiet", "--no-project", "--python", sys.executable]
            command += ["--with", library.requirement, "--with", "numpy", "python"]
        arguments = [library.module, scratch, url, str(int(with_index)), str(library.writers)]
        try:
            done = subprocess.run(
                [*command, str(script), *arguments],
                capture_output=True,
                text=True,
                check=False,
                # Nothing of this environment, such as a path to this llmemory, gets into theirs.
                env={
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("PYTHON", "VIRTUAL_ENV", "LLMEMORY_"))
                },
            )
        except OSError as error:
            raise RuntimeError(str(error)) from error
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def clean(url: str) -> None:
    """Drop what a run before has left."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS peer_llmemory CASCADE")
        connection.execute("DROP SCHEMA IF EXISTS peer_llmemory_050 CASCADE")
        connection.execute("DROP TABLE IF EXISTS peer_langchain, data_peer_llama_index")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CHECKPOINT")


def measured(
    library: Library,
    collection: Collection,
    folder: Path,
    arguments: argparse.Namespace,
) -> Figures:
    """Return a library's figures."""
    with_index = arguments.index or library.index == "always"
    rounds = []
    for _ in range(arguments.rounds):
        clean(arguments.database_url)
        rounds.append(run(library, folder, arguments.database_url, with_index=with_index))
    rankings = rounds[-1]["rankings"]
    return Figures(
        library.name,
        rounds[-1]["version"],
        with_index,
        statistics.median(found["adds_per_s"] for found in rounds),
        statistics.median(found["search_p50_ms"] for found in rounds),
        statistics.mean(
            ndcg(ranking, collection.judgments[query]) for query, ranking in rankings.items()
        ),
    )


def main(arguments: argparse.Namespace) -> None:
    """Measure the libraries one after the other and print the table."""
    collection = Collection.read(arguments.folder)
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(prepare(collection, Path(name), arguments))
        count = len(json.loads((Path(name) / "passages.json").read_text()))
        print(f"{count} passages of {collection.name}, {arguments.dimensions} dimensions")
        print(f"{'':<22}{'version':<10}{'HNSW':<6}{'adds/s':>8}{'hybrid p50':>13}{'nDCG@10':>9}")
        for library in LIBRARIES:
            if arguments.peers and library.name not in arguments.peers:
                continue
            try:
                figures = measured(library, collection, Path(name), arguments)
            except RuntimeError as error:
                print(f"{library.name:<22}not measured: {error}", flush=True)
                continue
            found.append(figures)
            print(
                f"{figures.name:<22}{figures.version:<10}{'yes' if figures.index else 'no':<6}"
                f"{figures.adds_per_s:8.0f}{figures.search_p50_ms:10.1f} ms{figures.ndcg_10:9.3f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figures) for figures in found], indent=2))


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="a collection in BEIR layout")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--dimensions", type=int, default=1536)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--index", action="store_true", help="an HNSW index in each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", type=lambda value: value.split(","), help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--database-url", required=True, help="PostgreSQL with pgvector")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
