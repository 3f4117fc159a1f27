"""A WSGI application with one Memory, made at import and with WARM=1 used before any fork."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request

from llmemory import HashEmbedder, Memory

app = Flask(__name__)
memory = Memory(embedder=HashEmbedder())
if os.environ.get("WARM"):
    memory.search("acme", "leave")


@app.post("/add")
def add() -> dict[str, Any]:
    added = memory.add_document("acme", request.args["name"], "Staff have 25 days of leave.")
    return {"pid": os.getpid(), "document_id": str(added.document_id)}


@app.post("/search")
def search() -> dict[str, Any]:
    return {"pid": os.getpid(), "hits": len(memory.search("acme", "leave"))}
