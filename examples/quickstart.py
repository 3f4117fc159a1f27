"""Add three documents and search them.

Uses the database that LLMEMORY_DATABASE_URL names, or else the embedded server:

    pip install ".[embedded]"
    python examples/quickstart.py
"""

from __future__ import annotations

import asyncio

from llmemory import AsyncMemory, NewDocument

OWNER = "quickstart"

DOCUMENTS = [
    NewDocument(
        owner_id=OWNER,
        document_name="Staff handbook",
        document_type="markdown",
        external_id="handbook",
        content=(
            "# Leave\n\nStaff have 25 days of leave a year.\n\n"
            "# Expenses\n\nSend receipts to finance within a month."
        ),
    ),
    NewDocument(
        owner_id=OWNER,
        document_name="Re: heating",
        document_type="email",
        external_id="mail-7",
        id_at_origin="anna@example.com",
        document_date="2025-02-14",
        content="The boiler in the east wing is repaired. The bill follows.",
    ),
    NewDocument(
        owner_id=OWNER,
        document_name="Visitors",
        external_id="visitors",
        content="Visitors sign in at the front desk and park behind the house.",
    ),
]

QUESTIONS = [
    "How many days of leave do I have?",
    "Who repaired the boiler?",
    "Where can guests park?",
]


async def main() -> None:
    async with AsyncMemory() as memory:
        for result in await memory.add_documents(DOCUMENTS):
            print(f"{result.status:<9}  {result.document_name}")
        for question in QUESTIONS:
            (hit,) = await memory.search(OWNER, question, limit=1)
            place = " > ".join([hit.document_name, *hit.headings])
            print(f"\n{question}\n  {place} (score {hit.score:.2f})\n  {hit.content!r}")


if __name__ == "__main__":
    asyncio.run(main())
