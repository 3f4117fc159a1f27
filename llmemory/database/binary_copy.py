"""PostgreSQL's binary COPY format, built in blocks. Pure.

Source of the format: PostgreSQL documentation, COPY, "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llmemory.types import HalfVectors

__all__ = ["VectorGroup", "blocks", "integer", "raw", "text", "text_array", "vector_rows"]

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_TRAILER = struct.pack("!h", -1)
_TEXT_OID = 25
_ROWS_A_BLOCK = 128

_length = struct.Struct("!i").pack
_count = struct.Struct("!h").pack
_integer = struct.Struct("!ii").pack


def blocks(rows: Iterable[Sequence[bytes]]) -> Iterator[bytes]:
    """Yield a whole COPY stream of `rows`, some hundred rows at a time.

    Args:
        rows: Fields made by the functions below, the same number in each row.
    """
    parts = [_HEADER]
    for number, row in enumerate(rows, start=1):
        parts.append(_count(len(row)))
        parts.extend(row)
        if number % _ROWS_A_BLOCK == 0:
            yield b"".join(parts)
            parts = []
    parts.append(_TRAILER)
    yield b"".join(parts)


def text(value: str) -> bytes:
    """Return a text field."""
    return raw(value.encode())


def raw(value: bytes) -> bytes:
    """Return a field of bytes as they are: bytea, or a uuid's 16."""
    return _length(len(value)) + value


def integer(value: int) -> bytes:
    """Return an int4 field."""
    return _integer(4, value)


def text_array(values: Sequence[str]) -> bytes:
    """Return a text[] field."""
    if not values:
        return raw(struct.pack("!iii", 0, 0, _TEXT_OID))
    head = struct.pack("!iiiii", 1, 0, _TEXT_OID, len(values), 1)
    return raw(head + b"".join(map(text, values)))


class VectorGroup(NamedTuple):
    """Vectors of one owner's chunks.

    Attributes:
        chunk_ids: 16 bytes each.
        rows: Which row of the vectors each chunk has.
    """

    owner_id: str
    chunk_ids: bytes
    rows: Sequence[int]


def vector_rows(
    space_id: int, vectors: HalfVectors, groups: Iterable[VectorGroup]
) -> Iterator[bytes]:
    """Yield a whole COPY stream for embeddings.

    Args:
        space_id: Their space.
        vectors: Array of shape ``(rows, dimensions)``.
        groups: Whose they are.
    """
    yield _HEADER
    for group in groups:
        yield from _vectors_of_owner(space_id, vectors, group)
    yield _TRAILER


def _vectors_of_owner(space_id: int, vectors: HalfVectors, group: VectorGroup) -> Iterator[bytes]:
    # The rows of one owner have one length, so that numpy lays them out at once.
    import numpy as np

    dimensions = vectors.shape[1]
    prefix = _count(4) + text(group.owner_id) + _length(16)
    middle = struct.pack("!ihihh", 2, space_id, 4 + 2 * dimensions, dimensions, 0)
    layout = np.dtype(
        [
            ("prefix", f"V{len(prefix)}"),
            ("chunk_id", "V16"),
            ("middle", f"V{len(middle)}"),
            ("vector", ">f2", (dimensions,)),
        ]
    )
    chunk_ids = np.frombuffer(group.chunk_ids, dtype="V16")
    for start in range(0, len(chunk_ids), _ROWS_A_BLOCK):
        ids = chunk_ids[start : start + _ROWS_A_BLOCK]
        block = np.empty(len(ids), dtype=layout)
        block["prefix"] = np.void(prefix)
        block["chunk_id"] = ids
        block["middle"] = np.void(middle)
        block["vector"] = vectors[group.rows[start : start + len(ids)]]
        yield block.tobytes()
