"""Splitting: what every text must keep to, and what Markdown's headings mean."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemory import DocumentType
from llmemory.text.chunking import BLOCK_CHARACTERS, Piece, split

KINDS = [DocumentType.TEXT, DocumentType.MARKDOWN, DocumentType.CODE, DocumentType.HTML]

# Alphabets that meet what splitters stumble over.
lines = st.text(alphabet="ab .\t#`~=->*1\u00e9\u0301🙂\r\u2028\x00", max_size=30)
texts = st.one_of(
    st.text(max_size=400),
    st.lists(lines, max_size=40).map("\n".join),
    st.lists(
        st.sampled_from(
            ["# A", "## B", "###### F", "text here", "```", "~~~", "", "Title", "=====", "---",
             "    code", "- item", "> quote", "| a | b |", "\r", "#notitle", "word " * 30]
        ),
        max_size=40,
    ).map("\n".join),
)  # fmt: skip


def pieces(text: str, kind: DocumentType = DocumentType.MARKDOWN, **options: Any) -> list[Piece]:
    return list(split(text, kind, **{"chunk_size": 2000, "chunk_overlap": 0, **options}))


def headings(text: str) -> list[tuple[str, ...]]:
    return [piece.headings for piece in pieces(text)]


@settings(max_examples=300, deadline=None)
@given(text=texts, kind=st.sampled_from(KINDS), size=st.integers(50, 300), data=st.data())
def test_pieces_are_slices_that_cover_the_text(
    text: str, kind: DocumentType, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    found = pieces(text, kind, chunk_size=size, chunk_overlap=overlap)
    covered = [False] * len(text)
    for piece in found:
        assert piece.content == text[piece.start : piece.end]
        assert 0 < len(piece.content) <= size
        assert not piece.content.isspace()
        covered[piece.start : piece.end] = [True] * len(piece.content)
    missed = "".join(c for c, is_covered in zip(text, covered, strict=True) if not is_covered)
    assert not missed.strip(), repr(missed)
    starts = [piece.start for piece in found]
    assert starts == sorted(starts)
    assert bool(found) is bool(text.strip())
    # The same text gives the same pieces: re-adding relies on it.
    assert pieces(text, kind, chunk_size=size, chunk_overlap=overlap) == found


@settings(max_examples=50, deadline=None)
@given(text=texts, size=st.integers(50, 300))
def test_markdown_and_code_do_not_overlap(text: str, size: int) -> None:
    for kind in (DocumentType.MARKDOWN, DocumentType.CODE):
        end = 0
        for piece in pieces(text, kind, chunk_size=size, chunk_overlap=size - 1):
            assert piece.start >= end
            end = piece.end


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "unit", ["word ", "x", "日本語。", "a\u0301", "👩‍👩‍👧‍👦", "line\n", "para\n\n"]
)
def test_texts_longer_than_a_block(kind: DocumentType, unit: str) -> None:
    text = unit * (BLOCK_CHARACTERS * 5 // 4 // len(unit)) + "end"
    found = pieces(text, kind)
    assert all(piece.content == text[piece.start : piece.end] for piece in found)
    assert all(len(piece.content) <= 2000 for piece in found)
    assert found[-1].content.endswith("end")
    gaps = [text[a.end : b.start] for a, b in pairwise(found)]
    assert not "".join(gaps).strip()


def test_plain_text_overlaps_and_prefers_paragraphs() -> None:
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 30 for n in range(20))
    apart = pieces(text, DocumentType.TEXT, chunk_size=400)
    assert all(piece.content.startswith("Paragraph") for piece in apart)
    shared = pieces("word " * 500, DocumentType.TEXT, chunk_size=400, chunk_overlap=100)
    assert any(a.end > b.start for a, b in pairwise(shared))
    assert all(a.end - b.start <= 100 for a, b in pairwise(shared))


def test_headings_give_their_path() -> None:
    text = (
        "Preface.\n\n# A\n\nOf A.\n\n## B\n\nOf B.\n\n"
        "### C ###\n\nOf C.\n\n## D\n\nOf D.\n\n# E\nOf E."
    )
    assert headings(text) == [
        (),
        ("A",),
        ("A", "B"),
        ("A", "B", "C"),
        ("A", "D"),
        ("E",),
    ]
    assert [piece.content.split()[-1] for piece in pieces(text)] == [
        "Preface.", "A.", "B.", "C.", "D.", "E.",
    ]  # fmt: skip


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_make_no_difference(newline: str) -> None:
    text = "# A\n\nOf A.\n\nB\n---\nOf B.\n\n```\n# no\n```\n\n## C ##\n\nOf C.\n"
    assert headings(text.replace("\n", newline)) == [("A",), ("A", "B"), ("A", "C")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Title\n=====\n\nbody\n\nSub\n---\nbody", [("Title",), ("Title", "Sub")]),
        ("####### seven\n\nbody", [()]),
        ("#hashtag\n\nbody", [()]),
        ("    # code\n\nbody", [()]),
        ("   # three spaces\n\nbody", [("three spaces",)]),
        ("#\tTab\n\nbody", [("Tab",)]),
        ("# A # B #\n\nbody", [("A # B",)]),
        ("# C#\n\nbody", [("C#",)]),
        ("#\n\nbody", [("",)]),
        ("###### F\n\nbody\n\n# A\n\nbody\n\n### C\n\nbody", [("F",), ("A",), ("A", "C")]),
        ("# A\n\n---\n\nbody", [("A",)]),
        ("# A\n\n- item\n---\n\nbody", [("A",)]),
        ("# A\n\n| a | b |\n|---|---|\n| 1 | 2 |", [("A",)]),
        ("# *Emph* `code` [link](x)\n\nbody", [("*Emph* `code` [link](x)",)]),
        ("# Ünï 🙂 日本\n\nbody", [("Ünï 🙂 日本",)]),
    ],
)
def test_what_is_a_heading(text: str, expected: list[tuple[str, ...]]) -> None:
    assert headings(text) == expected


@pytest.mark.parametrize(
    "fenced",
    [
        "```\n# no\n```",
        "```python\n# no\n```",
        "~~~\n# no\n```\n# no\n~~~",
        "````\n```\n# no\n```\n````",
        "  ```\n  # no\n  ```",
        "```\n# no\n~~~\n# no\n```   ",
        "~~~ ```\n# no\n~~~~~",
    ],
)
def test_fenced_code_has_no_headings(fenced: str) -> None:
    text = f"# A\n\n{fenced}\n\n# B\n\nbody"
    assert sorted(set(headings(text))) == [("A",), ("B",)]


def test_an_open_fence_reaches_to_the_end() -> None:
    assert set(headings("# A\n\n```\n# no\n\n## no")) == {("A",)}


@pytest.mark.parametrize("line", ["```inline```", "``` code ``` and text", "````a```b````"])
def test_code_within_a_line_opens_no_fence(line: str) -> None:
    assert headings(f"# A\n\n{line}\n\n# B\n\nbody") == [("A",), ("B",)]


def test_a_heading_without_a_body_joins_what_is_below() -> None:
    found = pieces("# A\n\n## B\n\n### C\n\nbody\n\n## D\n\n## E\n\nbody")
    assert found[0].headings == ("A", "B", "C")
    assert found[0].content.startswith("# A")
    text = "".join(piece.content for piece in found)
    assert all(f"# {name}" in text for name in "ABCDE")


def test_nothing_but_headings() -> None:
    assert [piece.content for piece in pieces("# A\n\n## B\n")] == ["# A\n\n## B"]
    assert pieces(" \n\n\t") == []


def test_deep_nesting_and_many_headings() -> None:
    text = "\n\n".join(f"{'#' * (n % 6 + 1)} H{n}\n\nbody {n}" for n in range(5000))
    found = pieces(text)
    assert len(found) == 5000
    assert all(len(piece.headings) == n % 6 + 1 for n, piece in enumerate(found))


def test_a_long_heading_is_not_copied_into_every_chunk() -> None:
    title = "word " * 20_000
    found = pieces(f"# {title}\n\nbody\n\n" + "text " * 20_000)
    assert sum(len(name) for piece in found for name in piece.headings) < 2 * len(title)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "# a" + " " * 200_000 + "b\n\nbody",
        "# a" + " #" * 100_000 + "b\n\nbody",
        "# " + " \t" * 100_000 + "b\n\nbody",
        "# a" + "#" * 200_000 + " b\n\nbody",
        "Title\n" + "=" * 200_000 + " x\n\nbody",
        "Title\n---" + " " * 200_000 + "x\n\nbody",
        "```" + "`" * 200_000 + "\n# no\n",
        "a\n" * 100_000,
        " " * 200_000 + "# a",
        "\n" * 200_000 + "# a\n\nbody",
        "> " * 50_000 + "deep",
        "- " * 50_000 + "deep",
        "[" * 50_000 + "](" * 50_000,
        "*" * 100_000 + "a" + "_" * 100_000,
    ],
    ids=range(14),
)
def test_no_markdown_takes_forever(text: str) -> None:
    found = pieces(text)
    assert all(piece.content == text[piece.start : piece.end] for piece in found)
