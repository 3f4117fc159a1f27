"""The chunks whose texts are refused: which documents they make, and what they get."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

from uuid_utils.compat import uuid7

from llmemory.database.engines import Database
from llmemory.embedding.partial import reason_of, shortened
from llmemory.errors import ConflictError, ContextFailed, LLMemoryError, TextsRefused
from llmemory.models import Tables
from llmemory.reembedding.chunk_walk import Key
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.statements import jobs as sql
from llmemory.statements.parameters import arrays

__all__ = ["Refusal", "Refusals"]

MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """A chunk whose text the embedder refuses, or whose context could not be made."""

    document_id: UUID
    position: int
    error: LLMemoryError


class Refusals(dict[Key, Refusal]):
    """The chunks that have no vector, and why not."""

    def reasons(self) -> dict[tuple[str, str], str]:
        """Say why, for each document by ``(owner_id, document_id)``."""
        refusals_of: defaultdict[tuple[str, str], list[Refusal]] = defaultdict(list)
        for key in sorted(self):
            refusal = self[key]
            refusals_of[key.owner_id, str(refusal.document_id)].append(refusal)
        found = {}
        for document, refusals in refusals_of.items():
            chunks = shortened(sorted(refusal.position for refusal in refusals))
            found[document] = f"{reason_of(refusals[0].error)} Chunks: {chunks}."
        return found

    def error(self) -> TextsRefused:
        """Return what to raise."""
        reasons = self.reasons()
        shown = [
            f"{owner_id}/{document_id}: {reason}"
            for (owner_id, document_id), reason in islice(reasons.items(), MOST_SHOWN)
        ]
        if len(reasons) > MOST_SHOWN:
            shown.append(f"And {len(reasons) - MOST_SHOWN} more.")
        is_function = all(isinstance(found.error, ContextFailed) for found in self.values())
        return TextsRefused(
            f"{'chunk_context failed for' if is_function else 'The embedder refused'} texts of "
            f"{len(reasons)} document{'s' * (len(reasons) > 1)}. "
            "All other vectors were made and are kept. Mend or delete what was refused and call "
            "reembed again, or pass skip_refused=True to go without its vectors. "
            + " ".join(shown),
            reasons=reasons,
        )

    async def leave_jobs(
        self, database: Database, tables: Tables, space: Space, settings: Settings
    ) -> int:
        """Leave a job for each of the documents; return how many these are."""
        documents = self.reasons()
        for owner_id, document_id in documents:
            values = {
                "owner": owner_id,
                "space": space.space_id,
                "now": datetime.now(UTC),
                # The next time is its last: it was tried here.
                "tried": settings.job_attempts - 1,
                **arrays(job_id=[uuid7()], document_id=[UUID(document_id)]),
            }
            # It was deleted just now.
            with suppress(ConflictError):
                async with database.transaction(owner_id=owner_id) as connection:
                    await connection.execute(sql.upsert_jobs(tables), values)
        return len(documents)
