"""Many clients at once, in a process of a lower priority than the server's.

Usage: python clients.py URL CLIENTS REQUESTS_OF_EACH
"""

from __future__ import annotations

import asyncio
import os
import sys

import httpx


async def client(session: httpx.AsyncClient, number: int, count: int) -> None:
    for turn in range(count):
        path = "/add" if (number + turn) % 2 else "/search"
        answer = await session.post(path, params={"name": f"{number} {turn}"})
        answer.raise_for_status()


async def main(url: str, clients: int, count: int) -> None:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as session:
        await asyncio.gather(*(client(session, number, count) for number in range(clients)))


os.nice(19)
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
