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


async def found(
    memory: AsyncMemory, query: str, search_type: str = "text", owner: str = "acme"
) -> set[str]:
    hits = await memory.search(owner, query, search_type=search_type)
    return {hit.document_name for hit in hits}


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


IDENTIFIERS = {
    "Call get_user_name before parse_config.": ["get_user_name", "user name", '"parse_config"'],
    "The class HttpRequestFactory is final.": ["httprequestfactory", "request", "Factory"],
    "Then HTTPServer.parseURL(request) fails": [
        "HTTPServer.parseURL",
        "HTTPServer",
        "parseURL",
        "server",
        "parse",
        '"HTTPServer parseURL"',
    ],
    "Frames join by pandas.DataFrame.merge(left)": [
        "pandas.DataFrame.merge",
        "DataFrame.merge",
        "pandas",
        "DataFrame",
        "merge",
        '"DataFrame.merge"',
    ],
    "It is in src/llmemory/core_parts.py now": [
        "src/llmemory/core_parts.py",
        "llmemory",
        "core_parts.py",
        "parts",
        "py",
    ],
    r"It is in C:\Users\jane there": [r"C:\Users\jane", "Users"],
    "Write to jane.doe@example.com today.": ["jane.doe@example.com", "jane", "example.com"],
    "See https://example.com/docs/install.html?v=7 for more.": [
        "https://example.com/docs/install.html",
        "example.com",
        "install",
        "docs",
        "https://example.com/docs/install.html?v=7",
    ],
    "Error 40417 occurred in version 3.14.2": ["40417", "3.14.2", "3.14", "14"],
    "Release v1.2.3 of the pump": ["v1.2.3", '"v1.2.3"'],
    "Invoice INV-2024-0042 is due": [
        "INV-2024-0042",
        "inv 0042",
        "0042",
        "2024",
        '"INV-2024-0042"',
        '"2024-0042"',
        '"invoice INV"',
    ],
    "It fell to -17 degrees, or +3": ["17", "-17", "3"],
    "It costs 25% more": ["25", "25%"],
    "Take a List<String> of them": ["List<String>", "string", "list"],
    "#include <stdio.h> comes first": ["stdio.h", "stdio", "<stdio.h>"],
    "if left < middle and right > other": ["middle", "right", "and right"],
    "<p class='note'>The <b>door</b> opens</p>": ["door", "note"],
    "Shares of AT&T rose": ["AT&T", "at&amp;t"],
    "Shares of AT&amp;T rose": ["AT&T"],
    "Our R&D is in Bern": ["R&D"],
    "C++ and C# developers": ["C++", "c#", '"C++"'],
    "It runs on .NET and ASP.NET": [".NET", "dotnet", "asp.net", "ASP"],
    "Trade with the U.S.A. grew": ["U.S.A.", "USA"],
    "A well-known fact": ["well-known", "known", '"well known fact"', '"well-known fact"'],
}
SPELLINGS = {
    "Résumé of a naïve café owner": ["resume naive cafe", "Cafe\u0301"],
    "Resume of a naive cafe owner": ["résumé naïve café"],
    "Cafe\u0301 in Zu\u0308rich": ["Café Zürich", "zurich"],
    "京都の café は静か": ["cafe", "café", "京都"],
    "คาเฟ่ café ในกรุงเทพ": ["cafe", "กรุงเทพ"],
    "cafe と 京都": ["café"],
    "私の黒猫はとても静か": ["猫", '"猫"', "黒猫"],
    "The full-width \uff21\uff22\uff23\uff11\uff12 code": ["ABC12"],
    "The full-width ABC12 code": ["\uff21\uff22\uff23\uff11\uff12"],
    "\uff76\uff80\uff76\uff85 only": ["カタカナ"],
    "カタカナ only": ["\uff76\uff80\uff76\uff85"],
    "서울은 도시": ["\u1109\u1165\u110b\u116e\u11af\u110b\u1173\u11ab"],
    "We don\u2019t close the keeper\u2019s gate": ["keeper's", "\u201ckeeper\u2019s gate\u201d"],
    "It is the keeper's gate": ["keeper\u2019s", "\u201ekeeper\u2019s gate\u201d", "«gate»"],
    "Part A\u2010100 and B\u22127": ["A-100", "100", '"B-7"'],
}


@pytest.mark.parametrize("written", [IDENTIFIERS, SPELLINGS], ids=["identifiers", "spellings"])
async def test_what_is_written_is_found(memory: AsyncMemory, written: dict[str, list[str]]) -> None:
    await memory.add_documents(
        {"owner_id": content, "document_name": text, "content": text, "language": "english"}
        for content in written
        for text in (content, "Lorem ipsum dolor sit amet.")
    )
    missed = [
        (content, query)
        for content, queries in written.items()
        for query in queries
        if await found(memory, query, owner=content) != {content}
    ]
    assert missed == []


async def test_whole_identifiers_rank_before_their_parts(memory: AsyncMemory) -> None:
    await add(memory, "english", whole="Ask 10.0.1.12 first", parts="Ask 12 or 10 or 0.1 first")
    hits = await memory.search("acme", "10.0.1.12", search_type="text")
    assert [hit.document_name for hit in hits] == ["whole", "parts"]
    assert await found(memory, '"10.0.1.12"') == {"whole"}
    assert await found(memory, "ask -first") == set()


async def test_names_with_signs_are_not_their_letters(memory: AsyncMemory) -> None:
    await add(memory, "english", plus="C++ or Rust", sharp="C# or Rust", letter="Vitamin C")
    assert await found(memory, "C++") == {"plus"}
    assert await found(memory, "rust -C++") == {"sharp"}
    assert await found(memory, "C") == {"letter"}


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
        GROUP BY hashtextextended(word COLLATE "C", hashtextextended('acme' COLLATE "C", 0))
            & 536870911
        HAVING count(*) = 2 LIMIT 1
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
