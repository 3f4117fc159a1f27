"""The bytes of PostgreSQL's binary COPY format, read back by a small parser of the format."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from llmemory.database import binary_copy


def rows_of(blocks: Iterable[bytes]) -> list[list[bytes | None]]:
    data = b"".join(blocks)
    assert data[:11] == b"PGCOPY\n\xff\r\n\0"
    flags, extension = struct.unpack("!ii", data[11:19])
    assert (flags, extension) == (0, 0)
    at, rows = 19, []
    while (count := struct.unpack_from("!h", data, at)[0]) != -1:
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from("!i", data, at)
            at += 4
            row.append(None if length < 0 else data[at : at + length])
            at += max(length, 0)
        rows.append(row)
    assert at + 2 == len(data)
    return rows


def array_of(field: bytes) -> list[str]:
    dimensions, has_null, oid = struct.unpack_from("!iii", field)
    assert (has_null, oid) == (0, 25)
    if dimensions == 0:
        assert len(field) == 12
        return []
    count, lower = struct.unpack_from("!ii", field, 12)
    assert (dimensions, lower) == (1, 1)
    at, values = 20, []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", field, at)
        values.append(field[at + 4 : at + 4 + length].decode())
        at += 4 + length
    assert at == len(field)
    return values


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_rows_survive(count: int) -> None:
    rows = [
        (
            binary_copy.text(f"ü🙂 {n}"),
            binary_copy.integer(n - 500),
            binary_copy.raw(bytes([n % 256])),
            binary_copy.text(""),
        )
        for n in range(count)
    ]
    found = rows_of(binary_copy.blocks(rows))
    assert len(found) == count
    for n, (text, number, raw, empty) in enumerate(found):
        assert text == f"ü🙂 {n}".encode()
        assert struct.unpack("!i", number or b"") == (n - 500,)
        assert (raw, empty) == (bytes([n % 256]), b"")


@pytest.mark.parametrize("values", [[], [""], ["a", "ü🙂", "", "x" * 5000], ["{", '"', "NULL"]])
def test_arrays_of_text(values: list[str]) -> None:
    ((field,),) = rows_of(binary_copy.blocks([(binary_copy.text_array(values),)]))
    assert array_of(field or b"") == values


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
@pytest.mark.parametrize("dimensions", [1, 3, 256, 1536])
def test_vectors(count: int, dimensions: int) -> None:
    vectors = np.random.default_rng(1).standard_normal((count, dimensions)).astype(np.float32)
    vectors = vectors.astype(np.float16)
    ids = [uuid4() for _ in range(count)]
    rows = list(reversed(range(count)))
    group = binary_copy.VectorGroup("öwner", b"".join(chunk.bytes for chunk in ids), rows)
    found: Any = rows_of(binary_copy.vector_rows(7, vectors, [group]))
    assert len(found) == count
    for written, chunk_id, vector in zip(found, ids, reversed(vectors), strict=True):
        owner, identifier, space, halfvec = written
        assert owner == "öwner".encode()
        assert identifier == chunk_id.bytes
        assert struct.unpack("!h", space) == (7,)
        assert struct.unpack_from("!hh", halfvec) == (dimensions, 0)
        assert np.array_equal(np.frombuffer(halfvec[4:], dtype=">f2"), vector)


def test_blocks_are_bounded() -> None:
    row = (binary_copy.raw(b"x" * 1000),)
    sizes = [len(block) for block in binary_copy.blocks(row for _ in range(2000))]
    assert max(sizes) < 300_000
