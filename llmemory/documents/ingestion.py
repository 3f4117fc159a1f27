"""Deciding what a write has to do: what is new, what is kept, what must be embedded. Pure."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from uuid_utils.compat import uuid7

from llmemory.embedding.text import ChunkToEmbed, text_to_embed
from llmemory.settings import Settings
from llmemory.text.chunking import Piece, split
from llmemory.types import DocumentType
from llmemory.validation.documents import CheckedDocument

__all__ = [
    "DocumentPlan",
    "PlannedChunks",
    "PlannedTexts",
    "StoredChunks",
    "StoredDocument",
    "plan_document",
    "plan_texts",
    "rows_by_hash",
    "token_estimate",
]

ID_BYTES = 16
HASH_BYTES = 32
NONE_LEFT = -1
BYTES_A_TOKEN = 4

Status: TypeAlias = Literal["created", "replaced", "unchanged"]
# Number of the document among the plans, or 0 where all share their vectors, and hash.
Key: TypeAlias = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as it is in the database, without its content.

    Attributes:
        updated_at: Tells whether it was changed since it was read.
        is_pending: Whether vectors of it are still to be made.
    """

    document_id: UUID
    external_id: str | None
    id_at_origin: str | None
    document_name: str
    document_type: str
    document_date: datetime | None
    language: str
    metadata: dict[str, Any]
    content_hash: bytes
    chunk_count: int
    updated_at: datetime
    is_pending: bool


@dataclass(frozen=True, slots=True)
class StoredChunks:
    """The chunks of a document as they are in the database, in order.

    They are kept by column, here and below: a large document has tens of thousands, and an object
    for each would take many times the room of its text.

    Attributes:
        ids: 16 bytes each.
        hashes: SHA-256 of the texts that are embedded, 32 bytes each.
        have_vectors: A byte each: 1 if it has a vector in the space that is written to, else 0.
    """

    ids: bytes
    hashes: bytes
    have_vectors: bytes


class _Reused(NamedTuple):
    chunk_id: bytes
    has_vector: bool


@dataclass(frozen=True, slots=True)
class PlannedChunks:
    """The chunks of a document as they will be, in order.

    Attributes:
        ids: 16 bytes each.
        hashes: SHA-256 of the texts that are embedded, 32 bytes each.
        starts: Offset of each one's first character in the document.
        ends: Offset behind its last character.
        headings: Markdown headings above each, as JSON arrays one behind the other; nothing
            where there are none.
        headings_ends: Where each of these ends.
        are_stored: A byte each: 1 if it takes over a stored chunk of the same text.
        want_vectors: A byte each: 1 if its text must be embedded.
        removed: Ids of the stored chunks that are not taken over, 16 bytes each.
    """

    ids: bytearray = field(default_factory=bytearray)
    hashes: bytearray = field(default_factory=bytearray)
    starts: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("i"))
    headings: bytearray = field(default_factory=bytearray)
    headings_ends: array[int] = field(default_factory=lambda: array("i"))
    are_stored: bytearray = field(default_factory=bytearray)
    want_vectors: bytearray = field(default_factory=bytearray)
    removed: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.starts)

    def append(self, piece: Piece, digest: bytes, stored: _Reused | None) -> None:
        """Add the chunk of `piece`, which takes over the `stored` one, if any."""
        self.ids.extend(uuid7().bytes if stored is None else stored.chunk_id)
        self.hashes.extend(digest)
        self.starts.append(piece.start)
        self.ends.append(piece.end)
        if piece.headings:
            self.headings.extend(json.dumps(piece.headings, ensure_ascii=False).encode())
        self.headings_ends.append(len(self.headings))
        self.are_stored.append(stored is not None)
        self.want_vectors.append(stored is None or not stored.has_vector)

    def headings_json(self, position: int) -> str:
        """Return the headings above a chunk, outermost first, as a JSON array."""
        start = self.headings_ends[position - 1] if position else 0
        return self.headings[start : self.headings_ends[position]].decode() or "[]"

    def headings_of(self, position: int) -> list[str]:
        """Return the headings above a chunk, outermost first."""
        if not self.headings:
            return []
        found: list[str] = json.loads(self.headings_json(position))
        return found

    def id_of(self, position: int) -> bytes:
        """Return a chunk's id as 16 bytes."""
        return _entry(self.ids, position, ID_BYTES)

    def hash_of(self, position: int) -> bytes:
        """Return the SHA-256 of the text that is embedded for a chunk."""
        return _entry(self.hashes, position, HASH_BYTES)


@dataclass(frozen=True, slots=True)
class DocumentPlan:
    """What a write does for one document.

    Attributes:
        stored: What it replaces; the write fails if that has changed in between.
        status: What will have happened.
        chunks: All of its chunks; None if they stay as they are.
    """

    document: CheckedDocument
    document_id: UUID
    stored: StoredDocument | None
    status: Status
    chunks: PlannedChunks | None

    @property
    def chunk_count(self) -> int:
        """How many chunks the document has afterwards."""
        if self.chunks is not None:
            return len(self.chunks)
        return self.stored.chunk_count if self.stored is not None else 0

    @property
    def writes_nothing(self) -> bool:
        """Whether the database already holds all of it."""
        stored, document = self.stored, self.document
        return (
            self.chunks is None
            and stored is not None
            and stored.external_id == document.external_id
            and stored.id_at_origin == document.id_at_origin
            and stored.document_name == document.document_name
            and stored.document_type == document.document_type.value
            and stored.document_date == document.document_date
            and stored.metadata == document.metadata
        )

    def content_of(self, position: int) -> str:
        """Return the text of a chunk."""
        assert self.chunks is not None
        return self.document.content[self.chunks.starts[position] : self.chunks.ends[position]]

    def chunk_to_embed(self, position: int) -> ChunkToEmbed:
        """Return a chunk with what it stands in."""
        assert self.chunks is not None
        return ChunkToEmbed(
            self.document.owner_id,
            self.document.document_name,
            tuple(json.loads(self.chunks.headings_json(position))),
            self.content_of(position),
            self.document.content,
        )

    @property
    def to_embed_count(self) -> int:
        """How many chunks there are whose texts must be embedded."""
        return 0 if self.chunks is None else self.chunks.want_vectors.count(1)

    @property
    def has_new_chunks(self) -> bool:
        """Whether there are chunks that no space has a vector of."""
        return self.chunks is not None and 0 in self.chunks.are_stored

    def to_embed(self) -> Iterator[tuple[int, bytes]]:
        """Yield position and hash of each of these chunks."""
        if (chunks := self.chunks) is not None:
            for position, wants_vector in enumerate(chunks.want_vectors):
                if wants_vector:
                    yield position, chunks.hash_of(position)


@dataclass(frozen=True, slots=True)
class PlannedTexts:
    """The different chunks that plans have to embed.

    Attributes:
        new: Those that have no vector yet.
        rows: For each chunk to embed, in the order of the plans, the row of its vector. Rows of
            `new` follow those of the vectors there were.
    """

    new: Sequence[ChunkToEmbed]
    rows: array[int]


class _Chunks(Sequence[ChunkToEmbed]):
    """Chunks, cut out of their documents when they are looked at."""

    def __init__(self, plans: Sequence[DocumentPlan]) -> None:
        self._plans = plans
        self._of_plan = array("i")
        self._position = array("i")

    def append(self, plan: int, position: int) -> None:
        self._of_plan.append(plan)
        self._position.append(position)

    def __len__(self) -> int:
        return len(self._position)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._plans[self._of_plan[index]].chunk_to_embed(self._position[index])


def plan_texts(
    plans: Sequence[DocumentPlan],
    known: Mapping[Key, int] | None = None,
    known_rows: int = 0,
    *,
    by_document: bool = False,
) -> PlannedTexts:
    """Find out which texts are to be embedded, each once.

    Args:
        plans: What will be written.
        known: Rows of the vectors that an attempt before has made, as of ``rows_by_hash``.
        known_rows: How many of these vectors there are.
        by_document: Whether equal texts of two documents have vectors of their own.
    """
    row_of = dict(known or {})
    new = _Chunks(plans)
    rows = array("i")
    for number, plan in enumerate(plans):
        for position, digest in plan.to_embed():
            key = (number if by_document else 0, digest)
            if key not in row_of:
                row_of[key] = known_rows + len(new)
                new.append(number, position)
            rows.append(row_of[key])
    return PlannedTexts(new, rows)


def rows_by_hash(
    plans: Iterable[DocumentPlan], rows: Sequence[int], *, by_document: bool = False
) -> dict[Key, int]:
    """Return the row of each text's vector, by its hash; `rows` are those of ``plan_texts``."""
    keys = (
        (number if by_document else 0, digest)
        for number, plan in enumerate(plans)
        for _, digest in plan.to_embed()
    )
    return dict(zip(keys, rows, strict=True))


def token_estimate(content: bytes) -> int:
    """Return about how many tokens a text has, given in UTF-8."""
    # Common tokenizers make one token of some four bytes of English.
    return -(-len(content) // BYTES_A_TOKEN)


def is_unchanged(document: CheckedDocument, stored: StoredDocument, settings: Settings) -> bool:
    """Return whether `document` would give the chunks that are stored, with the same vectors."""
    is_renamed = document.document_name != stored.document_name
    return not (is_renamed and settings.embed_headings) and (
        stored.content_hash == document.content_hash
        and stored.language == document.language
        and _splitting_rules(stored.document_type) == _splitting_rules(document.document_type)
    )


def plan_document(
    document: CheckedDocument,
    settings: Settings,
    stored: StoredDocument | None = None,
    stored_chunks: StoredChunks | None = None,
) -> DocumentPlan:
    """Split `document` and find out which of its chunks are stored already.

    An unchanged document is left alone, unless its chunks are given: then they are looked through
    for those that have no vector yet. A chunk whose text occurs among the stored ones takes over
    that chunk with its vector, so that only changed passages are embedded. Text here is all that
    is embedded: with ``embed_headings`` another name or heading makes another chunk.
    """
    if stored is not None and stored_chunks is None and is_unchanged(document, stored, settings):
        return DocumentPlan(document, stored.document_id, stored, "unchanged", None)
    chunks = PlannedChunks()
    reusable = _Reusable(stored_chunks or StoredChunks(b"", b"", b""))
    for piece in split(
        document.content,
        document.document_type,
        chunk_size=settings.chunk_size,
        chunk_overlap=settings.chunk_overlap,
    ):
        text = text_to_embed(
            piece.content,
            document.document_name,
            piece.headings,
            with_headings=settings.embed_headings,
        )
        digest = hashlib.sha256(text.encode()).digest()
        chunks.append(piece, digest, reusable.take(digest))
    chunks.removed.extend(reusable.rest())
    if stored is None:
        return DocumentPlan(document, uuid7(), None, "created", chunks)
    status: Status = "unchanged" if is_unchanged(document, stored, settings) else "replaced"
    return DocumentPlan(document, stored.document_id, stored, status, chunks)


class _Reusable:
    """Stored chunks by their text, each to be taken once, the first of equal ones first."""

    def __init__(self, chunks: StoredChunks) -> None:
        self._chunks = chunks
        count = len(chunks.have_vectors)
        # By text the first that is left, and behind each the next of the same text.
        self._first: dict[bytes, int] = {}
        self._next = array("i", bytes(4 * count))
        self._is_left = bytearray(b"\1") * count
        for position in reversed(range(count)):
            digest = _entry(chunks.hashes, position, HASH_BYTES)
            self._next[position] = self._first.get(digest, NONE_LEFT)
            self._first[digest] = position

    def take(self, digest: bytes) -> _Reused | None:
        position = self._first.get(digest, NONE_LEFT)
        if position == NONE_LEFT:
            return None
        self._first[digest] = self._next[position]
        self._is_left[position] = 0
        chunks = self._chunks
        return _Reused(_entry(chunks.ids, position, ID_BYTES), bool(chunks.have_vectors[position]))

    def rest(self) -> bytes:
        """Return the ids of those that were not taken."""
        left = (position for position, is_left in enumerate(self._is_left) if is_left)
        return b"".join(_entry(self._chunks.ids, position, ID_BYTES) for position in left)


def _entry(column: bytes | bytearray, position: int, width: int) -> bytes:
    return bytes(column[position * width : (position + 1) * width])


def _splitting_rules(document_type: str) -> str:
    return document_type if document_type in {DocumentType.MARKDOWN, DocumentType.CODE} else ""
