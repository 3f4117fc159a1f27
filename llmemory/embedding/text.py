"""The text that an embedder is given for a chunk: made here, whoever embeds it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ChunkToEmbed", "TextsToEmbed", "text_to_embed"]


@dataclass(frozen=True, slots=True)
class ChunkToEmbed:
    """A chunk whose vector is to be made, and what it stands in.

    Attributes:
        owner_id: Whose it is.
        document_name: Name of its document.
        headings: Markdown headings above it, outermost first.
        content: Its text.
        document_content: The whole document.
    """

    owner_id: str
    document_name: str
    headings: tuple[str, ...]
    content: str = field(repr=False)
    document_content: str = field(repr=False)


def text_to_embed(
    content: str,
    document_name: str,
    headings: Sequence[str],
    *,
    with_headings: bool,
    context: str = "",
) -> str:
    """Return what the embedder is given for a chunk.

    Its hash is what tells whether a stored chunk can be kept, with its vector. The context is not
    part of that: it belongs to the text and headings that it was made for.

    Args:
        content: The chunk's text.
        document_name: Name of its document.
        headings: Headings above it, outermost first.
        with_headings: Whether name and headings come before the text.
        context: What comes before all that.
    """
    path = " > ".join((document_name, *headings)) if with_headings else ""
    return "\n\n".join(part for part in (context, path, content) if part)


class TextsToEmbed(Sequence[str]):
    """The texts of chunks, made when they are looked at.

    Args:
        chunks: What they are of.
        with_headings: As of ``text_to_embed``.
        contexts: One for each chunk, or nothing.
    """

    def __init__(
        self, chunks: Sequence[ChunkToEmbed], *, with_headings: bool, contexts: Sequence[str] = ()
    ) -> None:
        self._chunks = chunks
        self._with_headings = with_headings
        self._contexts = contexts

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number: int = index
        chunk = self._chunks[number]
        return text_to_embed(
            chunk.content,
            chunk.document_name,
            chunk.headings,
            with_headings=self._with_headings,
            context=self._contexts[number] if self._contexts else "",
        )
