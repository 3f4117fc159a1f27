"""What comes back of a search: least scores, text around the hits, passages, highlights."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from integration.helpers import paragraphs
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, SearchResult, SearchType, Settings, ValidationError

pytestmark = pytest.mark.anyio

TYPES = pytest.mark.parametrize("search_type", list(SearchType))
SMALL = Settings(chunk_size=200, chunk_overlap=60)


# -- the least score ------------------------------------------------------------------------------


@TYPES
async def test_a_least_score_cuts_the_end_off_and_changes_nothing_else(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url)
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": str(number),
            "content": "leave " * (number % 7) + f"word{number % 5} " * (number % 11) + "day",
        }
        for number in range(150)
    )
    search: dict[str, Any] = {"owner_id": "acme", "query_text": "leave word1 day word4"}
    search["search_type"] = search_type
    everything = await memory.search(**search, limit=1000)
    assert len(everything) == 150
    assert await memory.search(**search, limit=1000, min_score=0) == everything
    for least in [*sorted({hit.score for hit in everything})[::7], 1, 0.5]:
        expected = [hit for hit in everything if hit.score >= least]
        assert await memory.search(**search, limit=1000, min_score=least) == expected
        paged: list[SearchResult] = []
        for offset in range(0, len(expected) + 40, 40):
            paged += await memory.search(**search, limit=40, offset=offset, min_score=least)
        assert [hit.chunk_id for hit in paged] == [hit.chunk_id for hit in expected]
        assert [hit.score for hit in paged] == [hit.score for hit in expected]


@TYPES
async def test_pages_join_where_many_hits_are_equal(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url, settings=Settings(candidates=10))
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": str(number),
            "content": "The very same leave." if number % 3 else f"Leave of kind{number % 2}.",
            "additional_metadata": {"even": number % 2 == 0},
        }
        for number in range(120)
    )
    for filters in ({}, {"metadata_filter": {"even": {"$ne": False}}}, {"min_score": 0.01}):
        search: dict[str, Any] = {"search_type": search_type, **filters}
        whole = [hit.chunk_id for hit in await memory.search("acme", "leave", limit=200, **search)]
        for size in (1, 7, 50):
            paged: list[str] = []
            for offset in range(0, len(whole) + size, size):
                page = await memory.search("acme", "leave", limit=size, offset=offset, **search)
                paged += [hit.chunk_id for hit in page]
            assert paged == whole


# -- the text around ------------------------------------------------------------------------------


def numbered(count: int) -> str:
    """Return a text whose chunks overlap: every sentence is there once."""
    return " ".join(f"Sentence {number} of the handbook is short." for number in range(count))


@TYPES
async def test_the_context_is_the_documents_own_text(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url, settings=SMALL)
    texts = {
        "plain": numbered(60),
        "unicode": paragraphs("ümläut🙂", "日本語", "e\u0301", length=150),
        "markdown": "# One\n\nLeave.\n\n\n## Two\n\nMore leave.\n\n# Three\n\nEnd.\n",
        "single": "Leave.",
    }
    for name, text in texts.items():
        await memory.add_document(
            "acme", name, text, document_type="markdown" if name == "markdown" else "general"
        )
    query = "sentence leave 日本語"
    for window in (1, 2, 50):
        hits = await memory.search(
            "acme", query, search_type=search_type, context_window=window, limit=99
        )
        assert hits
        for hit in hits:
            text = texts[hit.document_name]
            assert hit.context is not None
            assert hit.context_start is not None
            assert hit.context_end is not None
            assert hit.context == text[hit.context_start : hit.context_end]
            assert hit.content in hit.context
            assert hit.context_start <= hit.start < hit.end <= hit.context_end
            if window == 50 and hit.document_name != "plain":
                assert hit.context == text.strip()


async def test_the_context_has_as_many_neighbours_as_are_asked_for(
    make_memory: MakeMemory,
) -> None:
    memory = make_memory(settings=SMALL)
    await memory.add_document("acme", "handbook", numbered(60))
    await memory.add_document("acme", "other", numbered(60))
    await memory.add_document("else", "handbook", numbered(60))
    everything = await memory.search("acme", "sentence", search_type="text", limit=999)
    of_handbook = [hit for hit in everything if hit.document_name == "handbook"]
    chunks = {hit.position: hit for hit in of_handbook}
    assert len(chunks) > 10
    assert chunks[4].end > chunks[5].start, "the chunks overlap"
    for window in (0, 1, 2, 5, 50):
        for hit in await memory.search(
            "acme", "sentence", search_type="text", limit=999, context_window=window
        ):
            if hit.document_name != "handbook":
                continue
            if window == 0:
                assert (hit.context, hit.context_start, hit.context_end) == (None, None, None)
                continue
            first = max(hit.position - window, 0)
            last = min(hit.position + window, max(chunks))
            assert (hit.context_start, hit.context_end) == (chunks[first].start, chunks[last].end)


@TYPES
@pytest.mark.parametrize("window", [0, 1, 3])
async def test_passages_show_no_text_twice(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType, window: int
) -> None:
    memory = make_memory(driver_url, settings=SMALL)
    texts = {"handbook": numbered(80), "leave": paragraphs(*"abcdefgh", length=150)}
    for name, text in texts.items():
        await memory.add_document("acme", name, text)
    merged = 0
    for limit in (1, 5, 12, 200):
        found = await memory.search_with_documents(
            "acme",
            "sentence 17 40 41 42 a c h",
            search_type=search_type,
            context_window=window,
            limit=limit,
        )
        assert sum(len(document.results) for document in found.documents) == len(found.results)
        for document in found.documents:
            text = texts[document.document_name]
            ends = [-1]
            for passage in document.passages:
                assert passage.content == text[passage.start : passage.end]
                assert passage.start > ends[-1]
                ends.append(passage.end)
            for hit in document.results:
                (holding,) = (
                    passage
                    for passage in document.passages
                    if passage.start <= hit.start and hit.end <= passage.end
                )
                assert holding.score >= hit.score
            assert document.score == max(passage.score for passage in document.passages)
            merged += len(document.results) - len(document.passages)
    assert merged


async def test_documents_are_ranked_by_their_best_chunk(memory: AsyncMemory) -> None:
    for name, words in {"b": "leave leave leave", "a": "leave leave", "c": "leave"}.items():
        await memory.add_document("acme", name, paragraphs(f"{words} day", "leave", "day night"))
    for search_type in SearchType:
        for limit in (1, 2, 5, 9):
            found = await memory.search_with_documents(
                "acme", "leave", search_type=search_type, limit=limit
            )
            best = [document.score for document in found.documents]
            assert best == sorted(best, reverse=True)
            order = list(dict.fromkeys(hit.document_id for hit in found.results))
            assert [document.document_id for document in found.documents] == order
            for document in found.documents:
                scores = [hit.score for hit in document.results]
                assert scores == sorted(scores, reverse=True)


# -- highlights -----------------------------------------------------------------------------------

MARK = re.compile("<mark>(.*?)</mark>", re.DOTALL)


def marked(highlight: str | None) -> list[str]:
    assert highlight is not None
    return [html.unescape(word) for word in MARK.findall(highlight)]


def unmarked(highlight: str | None) -> str:
    """Return the text behind a highlight, after a check that our marks are its only tags."""
    assert highlight is not None
    without = MARK.sub(r"\1", highlight)
    assert not set("<>\"'") & set(without)
    return html.unescape(without)


@TYPES
async def test_highlights_mark_the_querys_words_in_all_their_forms(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url)
    await memory.add_document("acme", "en", "Houses are housing. The HOUSE, a housekeeper's house!")
    (hit,) = await memory.search("acme", "a house", search_type=search_type, highlight=True)
    assert marked(hit.highlight) == ["Houses", "housing", "HOUSE", "house"]
    assert unmarked(hit.highlight) == hit.content
    (hit,) = await memory.search("acme", "house", search_type=search_type)
    assert hit.highlight is None


async def test_highlights_mark_identifiers_and_their_parts(memory: AsyncMemory) -> None:
    content = "HTTPServer.parseURL(x) read INV-2024-0042 in C++ for AT&T: List<String>"
    await memory.add_document("acme", "en", content, language="english")
    for query, expected in {
        "parse 0042 string": ["parseURL", "0042", "String"],
        "C++ AT&T": ["C++", "AT&T"],
        "INV-2024-0042": ["INV-2024-0042"],
    }.items():
        (hit,) = await memory.search("acme", query, search_type="text", highlight=True)
        assert marked(hit.highlight) == expected
        assert unmarked(hit.highlight) == content


async def test_highlights_follow_the_language(memory: AsyncMemory) -> None:
    await memory.add_document("acme", "de", "Die Häuser im Hause, the houses.", language="german")
    await memory.add_document("acme", "en", "Die Häuser im Hause, the houses.", language="english")
    await memory.add_document("acme", "simple", "house houses", language="simple")

    async def found(query: str, **options: Any) -> dict[str, list[str]]:
        hits = await memory.search("acme", query, search_type="vector", highlight=True, **options)
        return {hit.document_name: marked(hit.highlight) for hit in hits}

    assert await found("Häusern") == {"de": ["Häuser", "Hause"], "en": [], "simple": []}
    assert await found("housed") == {"de": [], "en": ["houses"], "simple": []}
    assert await found("HOUSE") == {"de": ["houses"], "en": ["houses"], "simple": ["house"]}
    german = await found("Häusern", language="german")
    assert german == {"de": ["Häuser", "Hause"], "en": ["Hause"], "simple": []}


async def test_highlights_in_scripts_without_spaces(memory: AsyncMemory) -> None:
    await memory.add_document(
        "acme", "a", "休暇leaveは25日です。<b>有給休暇</b>", language="simple"
    )
    for query, expected in (
        ("休暇", ["休暇", "休暇"]),
        ("有給休暇", ["休暇", "有給休暇"]),
        ("leave 25", ["leave", "25"]),
        ("漢字", []),
    ):
        hits = await memory.search("acme", query, search_type="vector", highlight=True)
        assert marked(hits[0].highlight) == expected
        assert unmarked(hits[0].highlight) == hits[0].content


async def test_what_a_query_excludes_is_not_marked(memory: AsyncMemory) -> None:
    await memory.add_document("acme", "a", "Sick leave of absence, and parental leave.")
    (hit,) = await memory.search(
        "acme", 'leave "parental leave" -zebra', search_type="text", highlight=True
    )
    assert marked(hit.highlight) == ["leave", "parental", "leave"]


HOSTILE = [
    "<script>alert('leave')</script> leave",
    "<mark>leave</mark> </mark><mark> leave",
    '<img src=x onerror="leave(1)"> &lt;leave&gt; &amp;leave; leave',
    "leave <b>leave</b> <!-- leave --> leave&nbsp;leave",
    "\ue000leave\ue001 \x01leave\x02 {leave} %s leave",
    "foo-bar-leave snake_leave_case a@leave.org https://leave.org/leave?leave=1 /leave/leave.txt",
    "leave" * 900 + " leave " + "x" * 5000,
    "休暇leave 休暇 leave\u0301 ﬁleave İleave ẞ leave",
    "'leave' \"leave\" \\leave leave\n\r\tleave",
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
async def test_highlights_are_safe_html(
    make_memory: MakeMemory, driver_url: str, content: str
) -> None:
    memory = make_memory(driver_url, settings=Settings(chunk_size=20_000, chunk_overlap=0))
    await memory.add_document("acme", "hostile", content)
    for query in ("leave", content[:9000], "<mark> </mark> mark amp lt script x", "the"):
        for search_type in ("vector", "hybrid"):
            (hit,) = await memory.search("acme", query, search_type=search_type, highlight=True)
            assert unmarked(hit.highlight) == hit.content
            if query == "leave":
                assert "leave" in marked(hit.highlight)
            if query == "the":
                assert marked(hit.highlight) == []


async def test_highlights_in_a_schema_of_any_name(make_memory: MakeMemory) -> None:
    memory = make_memory(schema='a "b" %s :c')
    await memory.add_document("acme", "a", "Days of leave, <b>.")
    (hit,) = await memory.search("acme", "leave", highlight=True, context_window=1, min_score=0)
    assert hit.highlight == "Days of <mark>leave</mark>, &lt;b&gt;."


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("min_score", -0.1, "0 to 1"),
        ("min_score", 1.1, "0 to 1"),
        ("min_score", float("nan"), "0 to 1"),
        ("min_score", "high", "0 to 1"),
        ("min_score", True, "0 to 1"),
        ("context_window", -1, "max_context_window"),
        ("context_window", 51, "max_context_window"),
        ("context_window", 10**30, "max_context_window"),
        ("context_window", 1.0, "integer"),
        ("context_window", None, "integer"),
        ("context_window", True, "integer"),
        ("highlight", 1, "True or False"),
        ("highlight", "yes", "True or False"),
        ("highlight", None, "True or False"),
    ],
)
async def test_what_is_refused(memory: AsyncMemory, name: str, value: Any, problem: str) -> None:
    for search in (memory.search, memory.search_with_documents):
        with pytest.raises(ValidationError, match=problem) as caught:
            await search("acme", "leave", **{name: value})
        assert caught.value.field == name
