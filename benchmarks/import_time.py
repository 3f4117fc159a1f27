"""How long `import llmemory` takes, as a ratio to importing what it stands on.

Run: python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

BASE = "sqlalchemy.ext.asyncio, pydantic, httpx"
ROUNDS = 15


def seconds(modules: str) -> float:
    """Return the seconds a fresh interpreter takes to import `modules`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print both times and their ratio, taken in turn so that drift meets both."""
    seconds("llmemory")
    pairs = [(seconds("llmemory"), seconds(BASE)) for _ in range(ROUNDS)]
    ours, base = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(ours / base for ours, base in pairs)
    print(f"import llmemory            {ours * 1000:7.0f} ms")
    print(f"import {BASE} {base * 1000:7.0f} ms")
    print(f"ratio                      {ratio:7.2f}")


if __name__ == "__main__":
    main()
