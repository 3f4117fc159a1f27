"""Celery tasks that share a Memory made at import; with WARM=1 it is used before the fork."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery

from llmemory import HashEmbedder, Memory

FOLDER = Path(os.environ["CELERY_FOLDER"])
(FOLDER / "queue").mkdir(exist_ok=True)
(FOLDER / "results").mkdir(exist_ok=True)

app = Celery(
    "documents",
    broker="filesystem://localhost//",
    backend=f"file://{FOLDER}/results",
    broker_transport_options={
        "data_folder_in": f"{FOLDER}/queue",
        "data_folder_out": f"{FOLDER}/queue",
        "control_folder": f"{FOLDER}/control",
    },
)
memory = Memory(embedder=HashEmbedder())
if os.environ.get("WARM"):
    memory.search("acme", "leave")


@app.task
def add(name: str) -> dict[str, Any]:
    added = memory.add_document("acme", name, "Staff have 25 days of leave.")
    return {"pid": os.getpid(), "document_id": str(added.document_id)}


@app.task
def search(query: str) -> dict[str, Any]:
    return {"pid": os.getpid(), "hits": len(memory.search("acme", query, limit=100))}
