"""Splitting text into chunks that know where they come from. Pure: no I/O, no settings lookup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from llmemory.types import DocumentType

__all__ = ["Piece", "split"]

# The splitter holds the interpreter lock: a block bounds how long one call can hold up the
# event loop's thread (some milliseconds).
BLOCK_CHARACTERS = 50_000
LONGEST_HEADING = 200

# Each alternative reads a line once; what ends a heading is stripped behind it, since a pattern
# that looks for it would try every blank of a long line.
_HEADING = re.compile(
    r"""
    ^\ {0,3}(?P<fence>```+(?=[^`\n]*$)|~~~+)(?P<information>[^\n]*)$
    | ^\ {0,3}(?P<marks>\#{1,6})(?P<title>[ \t][^\n]*)?\r?$
    | ^\ {0,3}(?P<text>[^\s>#|+*\-=`~\d][^\n]*)\n\ {0,3}(?P<underline>=++|--++)[ \t\r]*+$
    """,
    re.MULTILINE | re.VERBOSE,
)
_CLOSING_MARKS = re.compile(r"(?<=[ \t])#+\Z|\A#+\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a text.

    Attributes:
        content: The chunk; equals ``text[start:end]``.
        headings: Markdown headings above it, outermost first.
        start: Offset of its first character.
        end: Offset behind its last character.
    """

    content: str
    headings: tuple[str, ...]
    start: int
    end: int


def split(
    text: str, document_type: DocumentType, *, chunk_size: int, chunk_overlap: int
) -> Iterator[Piece]:
    """Cut `text` where its structure allows: headings, paragraphs, lines, sentences, words.

    Markdown is cut at every heading and its chunks do not overlap, since headings give them their
    context; neither do those of code. Other text overlaps by up to `chunk_overlap`.

    Args:
        text: The document.
        document_type: MARKDOWN and CODE are split by their own rules, all else as plain text.
        chunk_size: Largest chunk, in characters.
        chunk_overlap: Characters that neighbouring chunks may share; smaller than `chunk_size`.

    Yields:
        Pieces in reading order. Every character that is no white space is in at least one.
    """
    if document_type is DocumentType.MARKDOWN:
        markdown = MarkdownSplitter(chunk_size)
        for start, end, headings in _sections(text):
            yield from _pieces(markdown, text, start, end, headings)
        return
    overlap = 0 if document_type is DocumentType.CODE else chunk_overlap
    yield from _pieces(TextSplitter(chunk_size, overlap=overlap), text, 0, len(text), ())


def _pieces(
    splitter: TextSplitter | MarkdownSplitter,
    text: str,
    start: int,
    end: int,
    headings: tuple[str, ...],
) -> Iterator[Piece]:
    for block_start, block_end in _blocks(text, start, end):
        for offset, content in splitter.chunk_indices(text[block_start:block_end]):
            if content and not content.isspace():
                begin = block_start + offset
                yield Piece(content, headings, begin, begin + len(content))


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > BLOCK_CHARACTERS:
        limit = start + BLOCK_CHARACTERS
        for boundary in ("\n\n", "\n", " "):
            cut = text.rfind(boundary, start + BLOCK_CHARACTERS // 2, limit)
            if cut > 0:
                limit = cut + len(boundary)
                break
        yield start, limit
        start = limit
    yield start, end


def _sections(text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield start, end and heading path of each section; one without a body joins the next."""
    path: list[tuple[int, str]] = []
    start = body = 0
    for at, after, level, title in _headings(text):
        # A heading right below another begins no section of its own: its parent would be a chunk
        # of nothing but a title.
        is_nested = bool(path) and level > path[-1][0]
        if text[body:at].strip() or not is_nested:
            yield start, at, tuple(name for _, name in path)
            start = at
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, title))
        body = after
    yield start, len(text), tuple(name for _, name in path)


def _headings(text: str) -> Iterator[tuple[int, int, int, str]]:
    """Yield offset, end, level and title of each heading outside fenced code."""
    fence = ""
    for block_start, block_end in _blocks(text, 0, len(text)):
        for match in _HEADING.finditer(text, block_start, block_end):
            if (mark := match["fence"]) is not None:
                if not fence:
                    fence = mark
                elif mark.startswith(fence) and not match["information"].strip():
                    fence = ""
            elif not fence:
                if match["marks"]:
                    level, title = len(match["marks"]), (match["title"] or "").strip()
                    title = _CLOSING_MARKS.sub("", title).strip()
                else:
                    level, title = (1 if match["underline"][0] == "=" else 2), match["text"].strip()
                yield match.start(), match.end(), level, title[:LONGEST_HEADING]
