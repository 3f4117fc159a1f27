"""What the words of a query find: languages, scripts, phrases, exclusions, odd tokens."""

from __future__ import annotations

import asyncio

import pytest
from integration.helpers import fetch
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, Settings, ValidationError

pytestmark = pytest.mark.anyio


async def add(memory: AsyncMemory, language: str | None = None, **contents: str) -> None:
    await memory.add_documents(
        {"owner_id": "acme", "document_name": name, "content": content, "language": language}
        for name, content in contents.items()
    )


async def found(memory: AsyncMemory, query: str, search_type: str = "text") -> set[str]:
    return {
        hit.document_name for hit in await memory.search("acme", query, search_type=search_type)
    }


@pytest.mark.parametrize(
    ("language", "content", "query"),
    [
        ("german", "Die Häuser standen am Fluss.", "Haus"),
        ("french", "Les chevaux galopaient dans la plaine.", "galoper cheval"),
        ("russian", "Собаки бегали по полям.", "собака поле"),
        ("spanish", "Los niños jugaban en las calles.", "niño calle"),
        ("chinese", "北京是中华人民共和国的首都。", "中国的首都是北京吗"),
        ("japanese", "東京都は日本の首都であり、最も人口の多い都市です。", "日本の首都"),
        ("korean", "서울은 대한민국의 수도이다.", "대한민국 수도"),
        ("thai", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เมืองหลวง"),
        ("english", "The report mentions 东京 twice.", "东京"),
    ],
)
async def test_words_are_found_in_the_documents_language(
    memory: AsyncMemory, language: str, content: str, query: str
) -> None:
    await add(memory, language, wanted=content, other="Lorem ipsum dolor sit amet.")
    assert await found(memory, query) == {"wanted"}


async def test_an_owner_may_mix_languages(memory: AsyncMemory) -> None:
    await add(memory, "german", house="Die Häuser am Fluss", dog="Ein Hund")
    await add(memory, "english", houses="Houses by the river", cat="A cat")
    await add(memory, "chinese", river="河边的房子")
    assert await found(memory, "Haus") == {"house"}
    assert await found(memory, "house") == {"houses"}
    assert await found(memory, "房子") == {"river"}
    assert await found(memory, "Hund cat") == {"dog", "cat"}


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ("Call get_user_name before parse_config.", "get_user_name"),
        ("Call get_user_name before parse_config.", "user name"),
        ("The class HttpRequestFactory is final.", "httprequestfactory"),
        ("Write to jane.doe@example.com today.", "jane.doe@example.com"),
        (
            "See https://example.com/docs/install.html for more.",
            "https://example.com/docs/install.html",
        ),
        ("Error 40417 occurred in version 3.14.2", "40417"),
        ("Error 40417 occurred in version 3.14.2", "3.14.2"),
        ("Invoice INV-2024-0017 is due", "INV-2024-0017"),
        ("Résumé of a naïve café owner", "resume naive cafe"),
        ("Resume of a naive cafe owner", "résumé naïve café"),
        ("Cafe\u0301 in Zu\u0308rich", "Café Zürich"),
        ("The full-width \uff21\uff22\uff23\uff11\uff12 code", "ABC12"),
        ("It costs 25% more", "25"),
        ("C++ and C# developers", "C++"),
    ],
)
async def test_identifiers_numbers_addresses_and_accents(
    memory: AsyncMemory, content: str, query: str
) -> None:
    await add(memory, "english", wanted=content, other="Lorem ipsum dolor sit amet.")
    assert await found(memory, query) == {"wanted"}


class TestWebSearch:
    @pytest.fixture(autouse=True)
    async def documents(self, memory: AsyncMemory) -> None:
        await add(
            memory,
            "english",
            annual="Staff have 25 days of annual leave.",
            apart="The annual report grants leave to print.",
            parental="Parental leave is unpaid.",
            sick="Sick leave needs a doctor's note.",
        )

    async def test_words_are_alternatives(self, memory: AsyncMemory) -> None:
        assert await found(memory, "annual doctor") == {"annual", "apart", "sick"}

    @pytest.mark.parametrize("search_type", ["text", "hybrid"])
    async def test_a_quoted_phrase_must_occur(self, memory: AsyncMemory, search_type: str) -> None:
        assert await found(memory, '"annual leave"', search_type) == {"annual"}
        assert await found(memory, '"annual leave" doctor', search_type) == {"annual"}
        assert await found(memory, '"days of annual leave"', search_type) == {"annual"}
        assert await found(memory, '"leave annual"', search_type) == set()

    @pytest.mark.parametrize("search_type", ["text", "hybrid"])
    async def test_what_is_excluded_does_not_occur(
        self, memory: AsyncMemory, search_type: str
    ) -> None:
        assert await found(memory, "leave -parental -sick", search_type) == {"annual", "apart"}
        assert await found(memory, 'leave -"annual leave"', search_type) == {
            "apart",
            "parental",
            "sick",
        }
        assert await found(memory, "leave -leaves", search_type) == set()

    async def test_or_widens_a_phrase(self, memory: AsyncMemory) -> None:
        assert await found(memory, '"annual leave" OR "sick leave"') == {"annual", "sick"}
        assert await found(memory, '"annual leave" OR parental') == {"annual", "parental"}

    async def test_a_phrase_that_nothing_has_gives_way_to_other_words(
        self, memory: AsyncMemory
    ) -> None:
        assert await found(memory, '"gardening leave" doctor') == {
            "annual",
            "apart",
            "parental",
            "sick",
        }
        assert await found(memory, '"gardening leave"') == set()

    async def test_only_stop_words_in_quotes_ask_for_nothing(self, memory: AsyncMemory) -> None:
        assert await found(memory, '"of the" doctor') == {"sick"}

    async def test_meaning_alone_takes_signs_literally(self, memory: AsyncMemory) -> None:
        assert len(await found(memory, '"annual leave" -sick', "vector")) == 4

    async def test_phrases_in_scripts_without_spaces(self, memory: AsyncMemory) -> None:
        await add(memory, "chinese", one="北京大学很大", two="大学在北京")
        assert await found(memory, '"北京大学"') == {"one"}
        assert await found(memory, "北京 -很大") == {"two"}


async def test_others_words_do_not_change_an_owners_scores(memory: AsyncMemory) -> None:
    await add(memory, "english", one="annual leave", two="sick leave of absence")
    before = await memory.search("acme", "annual leave", search_type="text")
    await memory.add_documents(
        {"owner_id": "other", "document_name": str(n), "content": "annual annual leave"}
        for n in range(200)
    )
    assert await memory.search("acme", "annual leave", search_type="text") == before


async def test_scores_are_the_same_however_documents_came(memory: AsyncMemory) -> None:
    texts = [f"word{n % 7} word{n % 3} common number {n}" for n in range(90)]

    async def add_some(owner: str, chosen: range) -> None:
        await memory.add_documents(
            {"owner_id": owner, "document_name": str(n), "content": texts[n], "external_id": n}
            for n in chosen
        )

    async def scores(owner: str) -> dict[str, float | None]:
        hits = await memory.search(owner, "word1 common", search_type="text", limit=100)
        return {hit.document_name: hit.lexical_score for hit in hits}

    await add_some("at once", range(90))
    for start in range(0, 90, 9):
        await add_some("in batches", range(start, start + 9))
    await add_some("again", range(90))
    await memory.delete_documents("again", external_ids=[str(n) for n in range(45)])
    await add_some("again", range(45))
    await asyncio.gather(*(add_some("together", range(n, 90, 6)) for n in range(6)))
    expected = await scores("at once")
    assert len(expected) == 90
    for owner in ("in batches", "again", "together"):
        assert await scores(owner) == expected


# The common words are looked up in the index of the one, and met by reading the other's chunks.
@pytest.mark.parametrize("count", [1900, 2100])
async def test_a_limit_on_candidates_keeps_the_rarer_words(
    make_memory: MakeMemory, count: int
) -> None:
    memory = make_memory(settings=Settings(candidates_by_words=100))
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": str(n),
            "content": f"common text {'rare' if n % 100 == 0 else 'usual'} {n}",
            "additional_metadata": {"even": n % 2 == 0},
        }
        for n in range(count)
    )
    hits = await memory.search("acme", "common rare", search_type="text", limit=21)
    rare = {str(n) for n in range(0, count, 100)}
    assert rare <= {hit.document_name for hit in hits}
    more = await memory.search("acme", "common rare", search_type="text", limit=60)
    assert len(more) == 60
    assert [hit.chunk_id for hit in more[:21]] == [hit.chunk_id for hit in hits]
    assert len(await memory.search("acme", "common", search_type="text", limit=100)) == 100
    even = await memory.search(
        "acme", "common rare", search_type="text", limit=60, metadata_filter={"even": True}
    )
    assert len(even) == 60
    assert rare <= {hit.document_name for hit in even}


async def test_postings_are_the_owners_own(memory: AsyncMemory, database_url: str) -> None:
    await add(memory, "english", one="annual leave")
    await memory.add_document("other", "one", "annual leave")
    rows = fetch(database_url, "SELECT owner_id, (words).terms FROM llmemory.chunks ORDER BY 1")
    (_, ours), (_, theirs) = rows
    assert len(ours) == len(theirs) == 2
    assert not set(ours) & set(theirs)


async def test_words_that_meet_at_a_position(memory: AsyncMemory, database_url: str) -> None:
    """Chosen for their hashes; their weights are summed, as those of the query are."""
    ((first, second),) = fetch(
        database_url,
        """
        SELECT min(word), max(word)
        FROM (SELECT 'x' || number AS word FROM generate_series(1, 100000) AS number) AS words
        GROUP BY hashtextextended(word COLLATE "C", 0) & 536870911 HAVING count(*) = 2 LIMIT 1
        """,
    )
    await add(memory, "simple", both=f"{first} {second}", one=f"{first} other", none="the other")
    hits = await memory.search("acme", f"{first} {second}", search_type="text")
    assert [hit.document_name for hit in hits] == ["both", "one"]
    rows = fetch(
        database_url,
        "SELECT cardinality((words).terms), (words).lexical::text FROM llmemory.chunks "
        f"ORDER BY content = '{first} {second}' DESC",
    )
    assert [terms for terms, _ in rows] == [2, 2, 2]
    assert [weights.count(":") for _, weights in rows] == [1, 2, 2]


async def test_a_documents_language_is_detected(make_memory: MakeMemory) -> None:
    memory = make_memory(settings=Settings(language="auto"))
    contents = {
        "german": "Die Mitarbeiter haben fünfundzwanzig Tage Urlaub im Jahr.",
        "french": "Les salariés ont droit à vingt-cinq jours de congés par an.",
        "english": "The employees have twenty-five days of annual leave.",
        "japanese": "従業員には年間二十五日の休暇があります。",
        "simple": "12345 67890",
    }
    added = {
        language: await memory.add_document("acme", language, content)
        for language, content in contents.items()
    }
    code = await memory.add_document("acme", "code", "def leave(): ...", document_type="code")
    named = await memory.add_document("acme", "named", contents["french"], language="English")
    for language, result in {**added, "simple": code, "english": named}.items():
        assert (await memory.get_document("acme", result.document_id)).language == language
    assert await found(memory, "Mitarbeiterin Tag") == {"german"}
    with pytest.raises(ValidationError, match="language"):
        await memory.search("acme", "leave", language="auto")
