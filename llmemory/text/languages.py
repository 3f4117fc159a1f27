"""The languages that documents and queries are analysed in, and how one is detected."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llmemory.errors import ConfigurationError

__all__ = ["AUTO", "LANGUAGES", "detected_language", "language_named"]

AUTO = "auto"
"""Stands for the language that a document is detected to be in."""

# By their codes of ISO 639-1.
_BY_CODE = {
    "ar": "arabic",
    "hy": "armenian",
    "eu": "basque",
    "ca": "catalan",
    "da": "danish",
    "nl": "dutch",
    "en": "english",
    "fi": "finnish",
    "fr": "french",
    "de": "german",
    "el": "greek",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "ga": "irish",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "no": "norwegian",
    "nb": "norwegian",
    "nn": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "es": "spanish",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
    "zh": "chinese",
    "ja": "japanese",
    "ko": "korean",
    "th": "thai",
}

LANGUAGES = ("simple", *dict.fromkeys(_BY_CODE.values()))
"""What text may be written in: PostgreSQL's configurations, and scripts without spaces."""

# As sure after this much as after the whole of it.
_SAMPLE_CHARACTERS = 4000


def language_named(name: str) -> str | None:
    """Return the language of a name or code, in any case: german, de and de-AT are one.

    None where it is none of ``LANGUAGES``.
    """
    name = name.strip().lower()
    if name in LANGUAGES:
        return name
    return _BY_CODE.get(name.replace("_", "-").partition("-")[0])


def detected_language(content: str) -> str:
    """Return the language of `content`, or "simple" where it is none of ``LANGUAGES``.

    Raises:
        ConfigurationError: The extra ``detect`` is not installed.
    """
    code, _ = _detector().classify(content[:_SAMPLE_CHARACTERS])
    return _BY_CODE.get(code, "simple")


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        import py3langid
    except ModuleNotFoundError:
        raise ConfigurationError(
            'language="auto" needs a detector: `pip install ".[detect]"`, or name the language.'
        ) from None
    return py3langid
