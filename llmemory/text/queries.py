"""What the words of a query ask for: phrases, exclusions and alternatives. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Query", "parsed_query"]

# A minus stands before what it excludes and after nothing: not as in "annual"-leave.
_TOKEN = re.compile(r'(?P<minus>(?<!\S)-)?"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+)|"')
_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»＂", '"'))  # noqa: RUF001
LONGEST_SEARCH = 16
"""Words up to which a query is read as one typed into a search field."""

# A minus before a digit is a number's.
_EXCLUDED_WORD = re.compile(r"(?<!\S)-(?=[^\W\d_])")


@dataclass(frozen=True, slots=True)
class Query:
    """A query in parts.

    Attributes:
        text: Every word that is asked for, those of phrases included.
        required: Groups of which each must be met, by any of the phrases or words in it.
        excluded: Phrases and words that must not occur.
        has_other_words: Whether something is asked for besides what is required.
    """

    text: str
    required: tuple[tuple[str, ...], ...] = ()
    excluded: tuple[str, ...] = ()
    has_other_words: bool = True

    @property
    def has_conditions(self) -> bool:
        """Whether some passages are ruled out, whatever their rank."""
        return bool(self.required or self.excluded)


def parsed_query(query_text: str) -> Query:
    """Return `query_text` in parts, as web searches read it.

    A "quoted phrase" must occur, a -word or a -"phrase" must not. Of phrases and words joined by
    OR one must occur, if a phrase is among them. All other words are optional; where there are
    some, a phrase that no passage has is not insisted on. A query that would only exclude is taken
    literally, and so is one of more than 16 words: there, quotes and dashes are punctuation.
    Typographic quotes are quotes.
    """
    if len(query_text.split()) > LONGEST_SEARCH:
        return Query(query_text)
    words: list[str] = []
    groups: list[tuple[list[str], bool]] = []
    excluded: list[str] = []
    is_joined = False
    for match in _TOKEN.finditer(query_text.translate(_QUOTES)):
        phrase, word = match["phrase"], match["word"]
        if phrase is not None and phrase.strip():
            if match["minus"]:
                excluded.append(phrase)
                is_joined = False
                continue
            term, is_phrase = phrase, True
        elif word == "OR":
            is_joined = bool(groups)
            continue
        elif word and _EXCLUDED_WORD.match(match.string, match.start("word")):
            excluded.append(word[1:])
            is_joined = False
            continue
        elif word:
            term, is_phrase = word, False
        else:
            continue
        words.append(term)
        if is_joined:
            terms, has_phrase = groups[-1]
            groups[-1] = ([*terms, term], has_phrase or is_phrase)
        else:
            groups.append(([term], is_phrase))
        is_joined = False
    if not words:
        return Query(query_text)
    required = tuple(tuple(terms) for terms, has_phrase in groups if has_phrase)
    if not required and not excluded and "OR" not in query_text:
        return Query(query_text)
    return Query(" ".join(words), required, tuple(excluded), len(required) < len(groups))
