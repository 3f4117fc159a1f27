"""How well searches rank: nDCG@10, recall@100 and MRR@10 on judged collections, by search type.

Collections are folders in BEIR layout: corpus.jsonl, queries.jsonl and qrels.tsv (or
qrels/test.tsv). Documents are added whole, with default settings but for the language; a
document's rank is that of its best passage. A title is the beginning of the text; with --titles it
is the document's name instead, which only LLMEMORY_EMBED_HEADINGS=true shows to the embedder.

Run: python benchmarks/quality.py FOLDER... [--language NAME=LANGUAGE] [--history] [--titles]
     [--embedder local:MODEL] [--alpha 0.3] [--json FILE] [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmemory import AsyncMemory, SearchType, Settings

SCHEMA = "bench_quality"
DEPTH = 100
BATCHES = 50
NAME_CHARACTERS = 1000


@dataclass(frozen=True)
class Score:
    """The means over a collection's judged queries."""

    collection: str
    history: str
    search_type: str
    ndcg_10: float
    recall_100: float
    mrr_10: float


@dataclass(frozen=True)
class Collection:
    """Documents, and queries with the grades of the documents that answer them."""

    name: str
    names: Mapping[str, str]
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgments: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, folder: Path, *, titles_are_names: bool = False) -> Collection:
        """Read a folder in BEIR layout."""
        names, texts = {}, {}
        for row in lines(folder / "corpus.jsonl"):
            key, title = row["_id"], (row.get("title") or "").strip()
            names[key] = title[:NAME_CHARACTERS] if title and titles_are_names else key
            parts = [row["text"]] if titles_are_names else [title, row["text"]]
            texts[key] = "\n\n".join(parts).strip()
        judgments: dict[str, dict[str, int]] = {}
        paths = (folder / "qrels.tsv", folder / "qrels" / "test.tsv")
        table = next(path for path in paths if path.exists()).read_text().splitlines()[1:]
        for query, document, grade in (line.split("\t") for line in table):
            if int(grade) > 0:
                judgments.setdefault(query, {})[document] = int(grade)
        queries = {row["_id"]: row["text"] for row in lines(folder / "queries.jsonl")}
        return cls(
            folder.name,
            names,
            {key: text for key, text in texts.items() if text},
            {key: text for key, text in queries.items() if key in judgments},
            judgments,
        )


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines."""
    with path.open() as file:
        for line in file:
            yield json.loads(line)


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], depth: int = 10) -> float:
    """Return the normalised discounted cumulative gain; Järvelin and Kekäläinen 2002."""

    def gain(values: Iterable[int]) -> float:
        return sum(value / math.log2(rank + 2) for rank, value in enumerate(values))

    ideal = gain(sorted(grades.values(), reverse=True)[:depth])
    return gain(grades.get(document, 0) for document in ranking[:depth]) / ideal


def reciprocal_rank(ranking: Sequence[str], grades: Mapping[str, int], depth: int = 10) -> float:
    """Return 1 / the rank of the first document with a grade, or 0."""
    ranks = (rank for rank, document in enumerate(ranking[:depth], 1) if document in grades)
    return 1 / next(ranks, math.inf)


async def measured(
    memory: AsyncMemory,
    collection: Collection,
    *,
    history: str,
    language: str,
    alpha: float | None,
) -> list[Score]:
    """Search with every judged query, in each way."""
    scores = []
    for search_type in SearchType:
        found = []
        for query, text in collection.queries.items():
            hits = await memory.search(
                collection.name,
                text,
                search_type=search_type,
                limit=DEPTH,
                language=language,
                alpha=alpha,
            )
            grades = collection.judgments[query]
            ranking = list(dict.fromkeys(hit.external_id or "" for hit in hits))
            recall = len(grades.keys() & set(ranking)) / len(grades)
            found.append((ndcg(ranking, grades), recall, reciprocal_rank(ranking, grades)))
        means = [sum(column) / len(found) for column in zip(*found, strict=True)]
        scores.append(Score(collection.name, history, search_type.value, *means))
    return scores


async def add(
    memory: AsyncMemory, collection: Collection, chosen: Sequence[str], language: str
) -> None:
    """Add the documents with the ids `chosen`."""
    await memory.add_documents(
        {
            "owner_id": collection.name,
            "document_name": collection.names[key],
            "content": collection.documents[key],
            "external_id": key,
            "language": language,
        }
        for key in chosen
    )


async def histories(
    memory: AsyncMemory, collection: Collection, language: str, *, every: bool
) -> Any:
    """Fill the memory in different ways, one after the other, and say which."""
    keys = list(collection.documents)
    await add(memory, collection, keys, language)
    yield "at once"
    if every:
        await memory.delete_owner(collection.name)
        for number in range(BATCHES):
            await add(memory, collection, keys[number::BATCHES], language)
        yield f"{BATCHES} batches"
        half = keys[::2]
        for start in range(0, len(half), 500):
            await memory.delete_documents(collection.name, external_ids=half[start : start + 500])
        await add(memory, collection, half, language)
        yield "half again"
    await memory.delete_owner(collection.name)


def plot(scores: Sequence[Score], file: Path) -> None:
    """Draw nDCG@10 of each way to search, collection by collection."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [score for score in scores if score.history == "at once"]
    names = list(dict.fromkeys(score.collection for score in drawn))
    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    for number, search_type in enumerate(SearchType):
        heights = [score.ndcg_10 for score in drawn if score.search_type == search_type]
        places = [place + (number - 1) * 0.27 for place in range(len(names))]
        axes.bar(places, heights, width=0.25, label=search_type.value)
    axes.set(ylabel="nDCG@10", ylim=(0, 1), xticks=range(len(names)), xticklabels=names)
    axes.legend(ncols=3, loc="upper left")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


async def main(arguments: argparse.Namespace) -> None:
    """Measure each collection and print the table."""
    languages = dict(pair.split("=") for pair in arguments.language)
    scores: list[Score] = []
    kind, _, model = arguments.embedder.partition(":")
    settings = Settings.from_env(embedder=kind, **({f"{kind}_model": model} if model else {}))
    schema = f"{SCHEMA}_{kind}"
    async with AsyncMemory(arguments.database_url, schema=schema, settings=settings) as memory:
        print(f"embedder {memory.embedder.model}, {memory.embedder.dimensions} dimensions")
        print(f"{'collection':<14}{'added':<12}{'search':<8} nDCG@10  recall@100  MRR@10")
        for folder in arguments.folders:
            collection = Collection.read(folder, titles_are_names=arguments.titles)
            language = languages.get(collection.name, "english")
            await memory.delete_owner(collection.name)
            async for history in histories(memory, collection, language, every=arguments.history):
                for score in await measured(
                    memory, collection, history=history, language=language, alpha=arguments.alpha
                ):
                    scores.append(score)
                    print(
                        f"{score.collection:<14}{score.history:<12}{score.search_type:<8}"
                        f"{score.ndcg_10:8.3f}{score.recall_100:12.3f}{score.mrr_10:8.3f}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(score) for score in scores], indent=2))
    if arguments.plot:
        plot(scores, arguments.plot)


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", type=Path, nargs="+", help="collections in BEIR layout")
    parser.add_argument(
        "--language", action="append", default=[], help="NAME=LANGUAGE; default: english"
    )
    parser.add_argument("--titles", action="store_true", help="titles are names, not text")
    parser.add_argument("--history", action="store_true", help="also in batches, and half again")
    parser.add_argument(
        "--embedder", default="static", help="static, local:NAME_OR_PATH or openai:MODEL"
    )
    parser.add_argument("--alpha", type=float, help="weight of meaning; default: the embedder's")
    parser.add_argument("--json", type=Path, help="write the scores here")
    parser.add_argument("--plot", type=Path, help="picture to draw; needs matplotlib")
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
