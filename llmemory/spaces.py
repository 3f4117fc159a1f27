"""The embedding spaces of a schema: which models its vectors come from, and which one counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.embedding.base import Embedder, provider_of
from llmemory.errors import EmbedderMismatchError
from llmemory.models import Tables
from llmemory.statements import spaces as sql
from llmemory.types import EmbeddingSpaceStatus, SpaceState

__all__ = [
    "FED",
    "SEARCHED",
    "Identity",
    "Model",
    "Space",
    "StoredSpace",
    "add_space",
    "check_space",
    "hold_space",
    "identity_of",
    "mismatch",
    "open_space",
    "read_spaces",
    "space_status",
    "spaces_to_feed",
    "stored_spaces",
    "usable_space",
]

State: TypeAlias = Literal["filling", "ready", "refilling", "dropped"]

SEARCHED: frozenset[State] = frozenset({"ready", "refilling"})
FED: frozenset[State] = frozenset({"filling", "refilling"})


class Identity(NamedTuple):
    """What tells a space from others: vectors of two identities are never compared."""

    provider: str
    model: str
    dimensions: int

    def __str__(self) -> str:
        return f"{self.provider}/{self.model} ({self.dimensions} dimensions)"


@dataclass(frozen=True, slots=True)
class Space:
    """The vectors of one model."""

    space_id: int
    identity: Identity

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        return self.identity.dimensions

    def __str__(self) -> str:
        return str(self.identity)


@dataclass(frozen=True, slots=True)
class StoredSpace(Space):
    """A space as it is in the database.

    Attributes:
        state: "filling" until every chunk has its vector, then "ready" to be searched. One that
            another has replaced stays so, and is "refilling" while it is to become the default
            again. "dropped" once its vectors are being deleted.
        is_default: Whether it has a vector of every chunk, or a job that will make it.
    """

    state: State
    is_default: bool

    @property
    def public_state(self) -> SpaceState:
        """The state as users are told it."""
        if self.state == "ready":
            return "in use" if self.is_default else "replaced"
        return self.state


class Model(NamedTuple):
    """An embedder with the space of its vectors: they change together or not at all."""

    embedder: Embedder
    space: Space


def identity_of(embedder: Embedder) -> Identity:
    """Return what the vectors of `embedder` are stored under."""
    return Identity(provider_of(embedder), embedder.model, embedder.dimensions)


async def stored_spaces(connection: AsyncConnection, tables: Tables) -> list[StoredSpace]:
    """Return the spaces of a schema, the oldest first."""
    with translated_errors():
        return await connection.run_sync(read_spaces, tables)


def read_spaces(connection: Connection, tables: Tables) -> list[StoredSpace]:
    """Return the same, on a connection of a session that is not ours."""
    return [
        StoredSpace(
            row.space_id,
            Identity(row.provider, row.model, row.dimensions),
            row.state,
            row.is_default,
        )
        for row in connection.execute(sql.list_spaces(tables))
    ]


async def space_status(connection: AsyncConnection, tables: Tables) -> list[EmbeddingSpaceStatus]:
    """Return the spaces of a schema as users see them, vectors counted."""
    spaces = await stored_spaces(connection, tables)
    with translated_errors():
        counted = await connection.execute(sql.count_vectors(tables))
        vectors = {row.space_id: row.vectors for row in counted}
        chunks = (await connection.execute(sql.count_chunks(tables))).scalar_one()
    return [
        EmbeddingSpaceStatus(
            space_id=space.space_id,
            **space.identity._asdict(),
            state=space.public_state,
            vectors=vectors.get(space.space_id, 0),
            missing=max(chunks - vectors.get(space.space_id, 0), 0),
        )
        for space in spaces
    ]


async def open_space(connection: AsyncConnection, tables: Tables, wanted: Identity) -> Space:
    """Return the space of a model, which the first one to come makes the default.

    Raises:
        EmbedderMismatchError: There are vectors of other models only.
    """
    spaces = await stored_spaces(connection, tables)
    if not any(space.is_default for space in spaces):
        await add_space(connection, tables, wanted, "ready", as_default=True)
        spaces = await stored_spaces(connection, tables)
    return usable_space(spaces, tables.schema, wanted)


async def add_space(
    connection: AsyncConnection,
    tables: Tables,
    identity: Identity,
    state: State,
    *,
    as_default: bool = False,
) -> None:
    """Insert a space, unless it is there or another one came in between."""
    values = {
        "given_provider": identity.provider,
        "given_model": identity.model,
        "given_dimensions": identity.dimensions,
        "given_state": state,
        "as_default": as_default,
        "now": datetime.now(UTC),
    }
    with translated_errors():
        await connection.execute(sql.insert_space(tables), values)


def usable_space(spaces: Sequence[StoredSpace], schema: str, wanted: Identity) -> Space:
    """Return the space of a model if it may be searched: the default, or one that it replaced.

    Raises:
        EmbedderMismatchError: It may not.
    """
    for space in spaces:
        if space.identity == wanted and space.state in SEARCHED:
            return Space(space.space_id, space.identity)
    raise mismatch(spaces, schema, wanted)


async def check_space(connection: AsyncConnection, tables: Tables, space: Space) -> None:
    """Check that `space` may be used still.

    Raises:
        EmbedderMismatchError: It was dropped.
    """
    usable_space(await stored_spaces(connection, tables), tables.schema, space.identity)


async def hold_space(connection: AsyncConnection, tables: Tables, space: Space) -> None:
    """Check the same, and keep `space` from being dropped until the transaction ends.

    Raises:
        EmbedderMismatchError: It was dropped.
    """
    with translated_errors():
        held = await connection.execute(sql.hold_state(tables), {"chosen": space.space_id})
    if held.scalar_one() not in SEARCHED:
        raise mismatch(await stored_spaces(connection, tables), tables.schema, space.identity)


def spaces_to_feed(spaces: Sequence[StoredSpace], schema: str, own: int) -> list[int]:
    """Return the other spaces that want vectors of what is written to the space `own`.

    They must be read after that is written: who makes another space waits for those that wrote
    before it could be seen.

    Raises:
        EmbedderMismatchError: `own` was dropped.
    """
    for space in spaces:
        if space.space_id == own and space.state not in SEARCHED:
            raise mismatch(spaces, schema, space.identity)
    return [
        space.space_id
        for space in spaces
        if space.space_id != own and (space.is_default or space.state in FED)
    ]


def mismatch(spaces: Sequence[StoredSpace], schema: str, given: Identity) -> EmbedderMismatchError:
    """Return the error that says why the space of a model may not be used."""
    stored = next((str(space) for space in spaces if space.is_default), "")
    states = {space.identity: space.state for space in spaces}
    if states.get(given) == "filling":
        message = (
            f'The vectors of {given} in schema "{schema}" are still being made; use {stored} until '
            "reembed has ended."
        )
    else:
        message = (
            f'The vectors in schema "{schema}" come from {stored}, the embedder in use is '
            f"{given}. Use the embedder of the stored vectors, another schema, or reembed."
        )
    return EmbedderMismatchError(message, stored=stored, given=str(given))
