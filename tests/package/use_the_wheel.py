"""Uses an installed llmemory as a newcomer would. Not a test of its own: ``nox -s package``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import llmemory
from llmemory import AsyncMemory
from llmemory.schema import migrate


async def add_and_search(folder: Path) -> None:
    async with AsyncMemory(f"embedded://{folder}") as memory:
        added = await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        (hit,) = await memory.search("acme", "How many days of holiday do I get?")
        assert hit.document_id == added.document_id
        health = await memory.health()
    assert health.healthy, health.problem
    print(f"added and found with {health.embedding_model}, PostgreSQL {health.postgresql_version}")


def main() -> None:
    place = Path(llmemory.__file__).parent
    assert place.is_relative_to(sys.prefix), f"{place} is not the installed wheel"
    assert migrate.scripts() == place / "_alembic"
    started = time.monotonic()
    asyncio.run(add_and_search(Path(sys.argv[1])))
    print(f"in {time.monotonic() - started:.1f} s")
    command = Path(sys.prefix) / "bin" / "llmemory"
    output = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("add", "search", "demo", "db"):
        assert name in output, f"llmemory --help does not name {name}"


main()
