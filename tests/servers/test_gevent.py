"""gevent: calls of many greenlets overlap, and none of them holds up the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugins.server import with_driver

# A package sentence_transformers without torch, for the process of a local model.
STAND_IN = Path(__file__).parents[1] / "unit" / "stand_in"
SCRIPT = """
from gevent import monkey
monkey.patch_all()

import asyncio, json, sys, time
import gevent
from llmemory import HashEmbedder, LocalEmbedder, Memory

SLEEP_S = 0.5
local = LocalEmbedder(".", dimensions=3)

class Slow(HashEmbedder):
    async def embed(self, texts, *, purpose):
        await asyncio.sleep(SLEEP_S)
        if purpose == "document":
            await local.embed(texts, purpose=purpose)
        return await super().embed(texts, purpose=purpose)

memory = Memory(sys.argv[1], embedder=Slow())
memory.add_document("acme", "a", "Leave.")
ticks = 0

def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1

ticking = gevent.spawn(tick)
started = time.perf_counter()
calls = [gevent.spawn(memory.search, "acme", "leave") for _ in range(20)]
gevent.joinall(calls, raise_error=True)
taken_s = time.perf_counter() - started
ticking.kill()

try:
    with gevent.Timeout(0.1):
        memory.add_document("acme", "b", "Given up.")
except gevent.Timeout:
    pass
names = [document.document_name for document in memory.list_documents("acme").documents]

def documents():
    for _ in range(2):
        yield {"owner_id": "acme", "document_name": str(memory.health().healthy), "content": "c"}

added = memory.add_documents(documents())
try:
    asyncio.get_running_loop()
    seen = True
except RuntimeError:
    seen = False
print(json.dumps({
    "hits": [len(call.value) for call in calls], "calls": taken_s / SLEEP_S, "ticks": ticks,
    "names": names, "added": [result.document_name for result in added], "loop is seen": seen,
}))
"""


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_greenlets_call_at_once(driver: str, database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, with_driver(database_url, driver)],
        env={**os.environ, "PYTHONPATH": str(STAND_IN)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    seen = json.loads(done.stdout)
    assert seen["hits"] == [1] * 20
    # One after the other they would take as long as 20.
    assert seen["calls"] < 10
    assert seen["ticks"] >= 20
    assert seen["names"] == ["a"]
    assert seen["added"] == ["True"] * 2
    assert seen["loop is seen"] is False
