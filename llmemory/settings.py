"""Settings: every value with its unit, and the only place that reads the environment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from llmemory.errors import ConfigurationError
from llmemory.text.languages import AUTO, LANGUAGES, language_named

__all__ = ["Settings", "checked_schema"]

# PostgreSQL cuts a longer identifier silently: two tenants' schemas could become one.
MAX_IDENTIFIER_BYTES = 63


def checked_schema(name: str) -> str:
    """Return `name` if PostgreSQL can hold it as a schema name unchanged.

    Raises:
        ConfigurationError: It is empty, longer than 63 bytes in UTF-8, holds a NUL character
            or a lone surrogate, or begins with ``pg_``, which PostgreSQL keeps for itself.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError("schema must be a name of 1 to 63 bytes.")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError("schema holds a lone surrogate; use valid Unicode.") from None
    if size > MAX_IDENTIFIER_BYTES:
        raise ConfigurationError(
            f"schema has {size} bytes, PostgreSQL keeps {MAX_IDENTIFIER_BYTES}; use a shorter name."
        )
    if "\0" in name:
        raise ConfigurationError("schema holds a NUL character; use another name.")
    if name.startswith("pg_") or name == "information_schema":
        raise ConfigurationError(f"schema {name!r} belongs to PostgreSQL; use another name.")
    return name


class Settings(BaseSettings):
    """Values that a memory works with. Frozen; given explicitly or by ``from_env``.

    A plain ``Settings()`` holds the defaults and what is passed: it does not look at the
    environment. ``Settings.from_env()`` reads ``LLMEMORY_`` variables, one per field, such as
    ``LLMEMORY_DATABASE_URL``.

    Raises:
        ConfigurationError: A value is out of range or a name is unknown.
    """

    model_config = SettingsConfigDict(env_prefix="LLMEMORY_", frozen=True, extra="forbid")

    database_url: SecretStr | None = Field(
        None,
        description="Where the documents live: `postgresql://`, `postgresql+asyncpg://`, "
        "`postgresql+psycopg://` or `embedded://`. Empty means the embedded server.",
    )
    replica_url: SecretStr | None = Field(
        None, description="A read replica of it, which searches ask. Empty means none."
    )
    schema_name: str = Field(
        "llmemory", description="PostgreSQL schema that holds the tables, at most 63 bytes."
    )
    migrate: bool = Field(
        True,
        description="Whether `initialize` migrates the schema; if not, it only checks.",
    )
    row_level_security: bool = Field(
        False,
        description="Whether each transaction says whose rows it reads and writes; needed once "
        "`llmemory db enable-rls` was run.",
    )
    pool_size: int = Field(5, ge=1, le=1000, description="Connections kept open per event loop.")
    pool_overflow: int = Field(
        10, ge=0, le=1000, description="Connections beyond `pool_size` under load."
    )
    pool_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds to wait for a free connection."
    )
    connect_timeout_s: float = Field(
        10.0, gt=0, le=3600, description="Seconds to wait for the server to accept a connection."
    )
    transaction_pooler: bool = Field(
        False,
        description="Whether a pooler in transaction mode, such as PgBouncer, stands before the "
        "server.",
    )

    embedder: Literal["auto", "openai", "local", "static", "hash"] = Field(
        "auto",
        description="Embedder used where none is passed: `auto` takes OpenAI's if there is a key, "
        "else the static one if it is installed.",
    )
    openai_api_key: SecretStr | None = Field(
        None, description="Key of an endpoint that speaks OpenAI's embeddings API."
    )
    openai_base_url: str | None = Field(None, description="Its address. Empty means OpenAI's own.")
    openai_model: str = Field(
        "text-embedding-3-small", min_length=1, description="Model that it is asked for."
    )
    openai_dimensions: int | None = Field(
        None, ge=1, le=16_000, description="Vector length; needed for models that are not known."
    )
    local_model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="Model of sentence-transformers: a name, or the path of a folder.",
    )
    local_dimensions: int | None = Field(
        None,
        ge=1,
        le=16_000,
        description="Vector length. Empty means the model's own, which loads it at once.",
    )
    local_name: str | None = Field(
        None, description="Name stored beside its vectors. Empty means `local_model`."
    )
    local_document_prompt: str | None = Field(
        None, description="Put before each document. Empty means the model's own, if any."
    )
    local_query_prompt: str | None = Field(
        None, description="Put before each query. Empty means the model's own, if any."
    )
    local_device: str | None = Field(
        None, description="`cpu`, `cuda` or `mps`. Empty means the best there is."
    )
    hash_dimensions: int = Field(
        256, ge=2, le=4000, description="Vector length of the hash embedder."
    )
    embedding_batch_size: int = Field(
        128, ge=1, le=10_000, description="Texts given to the embedder in one call."
    )
    embed_headings: bool = Field(
        False,
        description="Whether the embedder sees the document's name and the headings above a chunk "
        "before its text.",
    )
    chunk_context: str | None = Field(
        None,
        description="Function that makes what the embedder sees before a chunk, where none is "
        "passed, as `package.module:name`.",
    )
    chunk_context_concurrency: int = Field(
        8, ge=1, le=1000, description="Calls of `chunk_context` that run at once."
    )
    chunk_context_cache_size: int = Field(
        10_000,
        ge=0,
        le=10_000_000,
        description="Last contexts that a memory keeps, to ask for none twice; 0 for none.",
    )
    query_cache_size: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="Last queries whose vectors a memory keeps, 2 bytes a dimension; 0 for none.",
    )

    language: str = Field(
        "english",
        description="Language of documents added without one: a text search configuration.",
    )
    chunk_size: int = Field(
        2000, ge=50, le=100_000, description="Largest length of a chunk, in characters."
    )
    chunk_overlap: int = Field(
        200, ge=0, le=50_000, description="Characters that neighbouring chunks of plain text share."
    )

    max_content_bytes: int = Field(
        10_000_000, ge=1, le=500_000_000, description="Largest document, in bytes of UTF-8."
    )
    max_file_bytes: int = Field(
        50_000_000,
        ge=1,
        le=2_000_000_000,
        description="Largest file that is converted, in bytes; a packed one counts unpacked.",
    )
    max_metadata_bytes: int = Field(
        100_000, ge=2, le=10_000_000, description="Largest metadata, in bytes of JSON."
    )
    max_metadata_depth: int = Field(
        20, ge=1, le=100, description="Deepest nesting of lists and objects in metadata."
    )
    max_filter_conditions: int = Field(
        50, ge=1, le=1000, description="Most conditions of one `metadata_filter`."
    )
    max_name_length: int = Field(
        1000, ge=1, le=10_000, description="Longest document name, in characters."
    )
    max_id_bytes: int = Field(
        512,
        ge=36,
        le=1000,
        description="Longest owner_id, id_at_origin or external_id, in bytes of UTF-8.",
    )
    max_query_length: int = Field(
        10_000, ge=1, le=1_000_000, description="Longest query, in characters."
    )
    max_limit: int = Field(1000, ge=1, le=100_000, description="Largest `limit` of a call.")
    max_context_window: int = Field(
        50, ge=0, le=10_000, description="Most neighbours on each side that a search gives."
    )

    job_lease_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds after which the queued work of a process that died is done anew; "
        "a process that lives renews them.",
    )
    job_attempts: int = Field(
        10, ge=1, le=100, description="How often a document's vectors are tried before it fails."
    )
    job_poll_s: float = Field(
        5.0, gt=0, le=3600, description="Seconds after which an idle worker looks for jobs again."
    )
    job_notify: bool = Field(
        True, description="Whether adding tells workers at once, by NOTIFY, and they listen for it."
    )

    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the vector arm in hybrid search. Empty means the embedder's own.",
    )
    candidates: int = Field(
        100, ge=10, le=10_000, description="Hits of each arm that a hybrid search fuses, at least."
    )
    candidates_by_words: int = Field(
        2_000,
        ge=100,
        le=1_000_000,
        description="Chunks that a search by words scores, those with its rarer words first.",
    )

    hnsw_owner_vectors: int = Field(
        10_000,
        ge=1,
        le=1_000_000_000,
        description="Vectors from which on an owner gets an HNSW index; below a quarter it goes.",
    )
    hnsw_max_indexes: int = Field(
        100, ge=0, le=10_000, description="HNSW indexes at most; the largest owners get them."
    )
    hnsw_m: int = Field(16, ge=2, le=100, description="Connections of a vector in an HNSW index.")
    hnsw_ef_construction: int = Field(
        128, ge=4, le=1000, description="Candidates when an HNSW index is built, at least 2 x m."
    )
    hnsw_signs: bool = Field(
        False,
        description="Whether HNSW indexes hold only the signs of vectors, which makes them small; "
        "hits are scored anew. Beyond 4,000 dimensions they always do.",
    )
    hnsw_ef_search: int = Field(
        100,
        ge=1,
        le=1000,
        description=(
            "Candidates when an HNSW index is searched; more where a filter leaves few of many "
            "vectors."
        ),
    )
    hnsw_max_scan_tuples: int = Field(
        20_000,
        ge=1,
        le=1_000_000_000,
        description="Vectors that a search takes from an HNSW index before it reads all.",
    )
    hnsw_exact_chunks: int = Field(
        4_000,
        ge=0,
        le=1_000_000,
        description="Chunks, at most, that a search reads one by one where a filter leaves few.",
    )
    hnsw_refresh_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Seconds after which a memory looks again which owners have an HNSW index, and "
        "how much filters leave.",
    )
    word_count_chunks: int = Field(
        10_000,
        ge=1,
        le=1_000_000_000,
        description="Chunks from which on `maintain` counts an owner's common words.",
    )
    word_count_minimum: int = Field(
        1_000, ge=1, le=1_000_000_000, description="Chunks that a word counted so is in, at least."
    )

    @field_validator("schema_name")
    @classmethod
    def _check_schema(cls, value: str) -> str:
        return checked_schema(value)

    @field_validator("language")
    @classmethod
    def _check_language(cls, value: str) -> str:
        language = AUTO if value.strip().lower() == AUTO else language_named(value)
        if language is None:
            raise ConfigurationError(
                f"language {value!r} is not known; use {AUTO} or one of {', '.join(LANGUAGES)}."
            )
        return language

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if self.chunk_overlap >= self.chunk_size:
            raise ConfigurationError(
                f"chunk_overlap ({self.chunk_overlap}) must be smaller than "
                f"chunk_size ({self.chunk_size})."
            )
        if self.hnsw_ef_construction < 2 * self.hnsw_m:
            raise ConfigurationError(
                f"hnsw_ef_construction ({self.hnsw_ef_construction}) must be at least twice hnsw_m "
                f"({self.hnsw_m})."
            )
        return self

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except PydanticValidationError as error:
            raise ConfigurationError(_explain(error)) from None

    @classmethod
    def from_env(cls, **values: Any) -> Settings:
        """Return the settings that ``LLMEMORY_`` variables give, `values` winning over them.

        Raises:
            ConfigurationError: A variable or value is out of range.
        """
        return _EnvironmentSettings(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the environment out: reading it is ``from_env``'s explicit act."""
        return (init_settings,)


class _EnvironmentSettings(Settings):
    model_config = SettingsConfigDict(env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)


def _explain(error: PydanticValidationError) -> str:
    # Pydantic's own text shows the input, which may be a connection string.
    problems = (
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False, include_context=False)
    )
    return "Invalid settings: " + "; ".join(problems) + ". See docs/configuration.md."
