"""Every error that llmemory raises, in one tree.

::

    LLMemoryError
    ├── ConfigurationError          the set-up is wrong; the message says what to change
    │   └── EmbedderMismatchError   the stored vectors come from another model
    ├── ValidationError             an argument is wrong; nothing was stored (a ValueError)
    ├── DocumentNotFoundError       no such document for this owner (a LookupError)
    ├── ClosedError                 the memory was closed
    ├── SchemaError                 the tables are not what this version needs
    │   ├── SchemaMissing           they do not exist yet
    │   ├── SchemaOutOfDate         they are older than the library
    │   ├── SchemaTooNew            they are newer than the library
    │   └── ExtensionMissing        pgvector is absent, too old or may not be created
    ├── StorageError                the database refused or failed
    │   ├── StorageUnavailable      it could not be reached; trying again later helps
    │   └── ConflictError           a concurrent change won; trying again helps
    └── EmbeddingError              the embedder failed
        ├── ProviderUnavailable     it did not answer; trying again later helps
        ├── ProviderRejected        it refused the request
        ├── ContextFailed           the function that makes contexts of chunks failed
        ├── TextsRefused            it refused texts of some documents, when all were embedded anew
        └── DimensionMismatch       it returned vectors of the wrong length

No driver or HTTP exception leaves the library; the original one is the ``__cause__``.
Messages never hold passwords, keys or document text.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "ContextFailed",
    "DimensionMismatch",
    "DocumentNotFoundError",
    "EmbedderMismatchError",
    "EmbeddingError",
    "ExtensionMissing",
    "LLMemoryError",
    "ProviderRejected",
    "ProviderUnavailable",
    "SchemaError",
    "SchemaMissing",
    "SchemaOutOfDate",
    "SchemaTooNew",
    "StorageError",
    "StorageUnavailable",
    "TextsRefused",
    "ValidationError",
]


class LLMemoryError(Exception):
    """The base of all errors of this library: catch it to catch them all."""


class ConfigurationError(LLMemoryError):
    """The set-up is wrong. Change what the message names, then start again."""


class EmbedderMismatchError(ConfigurationError):
    """The stored vectors were made by another model than the embedder in use.

    Open the memory with the stored model, use another schema, or ``reembed``.

    Attributes:
        stored: Model and dimensions of the stored vectors.
        given: Model and dimensions of the embedder in use.
    """

    def __init__(self, message: str, *, stored: str = "", given: str = "") -> None:
        super().__init__(message)
        self.stored = stored
        self.given = given


class ValidationError(LLMemoryError, ValueError):
    """An argument is wrong. Nothing was stored; mend the argument and call again.

    Attributes:
        field: Name of the argument, or None where several are concerned.
        index: Position of the document in a bulk call, or None.
    """

    def __init__(self, message: str, *, field: str | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.index = index


class DocumentNotFoundError(LLMemoryError, LookupError):
    """This owner has no such document. One of another owner counts as missing.

    Attributes:
        document_id: The id that was asked for.
    """

    def __init__(self, message: str, *, document_id: str = "") -> None:
        super().__init__(message)
        self.document_id = document_id


class ClosedError(LLMemoryError):
    """The memory was closed. Make a new one."""


class SchemaError(LLMemoryError):
    """The tables are not what this version of the library needs.

    Attributes:
        schema: The PostgreSQL schema that was looked at.
    """

    def __init__(self, message: str, *, schema: str = "") -> None:
        super().__init__(message)
        self.schema = schema


class SchemaMissing(SchemaError):
    """The tables do not exist. Run the migration that the message names."""


class SchemaOutOfDate(SchemaError):
    """The tables are older than the library. Run the migration that the message names.

    Attributes:
        found: Revision of the tables.
        expected: Revision that the library needs.
    """

    def __init__(
        self, message: str, *, schema: str = "", found: str = "", expected: str = ""
    ) -> None:
        super().__init__(message, schema=schema)
        self.found = found
        self.expected = expected


class SchemaTooNew(SchemaOutOfDate):
    """A newer version of the library made the tables. Upgrade the library."""


class ExtensionMissing(SchemaError):
    """pgvector is absent, too old or may not be created. The message holds the remedy."""


class StorageError(LLMemoryError):
    """The database refused or failed; what was being written is not stored.

    Attributes:
        sqlstate: PostgreSQL's five-character code, or None where there is none.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class StorageUnavailable(StorageError):
    """The database could not be reached or went away. Trying again later helps."""


class ConflictError(StorageError):
    """A concurrent change won. Trying again helps.

    Attributes:
        constraint: Name of the violated constraint, or None.
    """

    def __init__(
        self, message: str, *, sqlstate: str | None = None, constraint: str | None = None
    ) -> None:
        super().__init__(message, sqlstate=sqlstate)
        self.constraint = constraint


class EmbeddingError(LLMemoryError):
    """The embedder failed; nothing was stored."""


class ProviderUnavailable(EmbeddingError):
    """The embedding provider did not answer. Trying again later helps.

    Attributes:
        retry_after_s: Seconds the provider asked to wait, or None.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProviderRejected(EmbeddingError):
    """The embedding provider refused the request: a wrong key, model or input.

    Attributes:
        status: HTTP status, or None where the provider is not reached over HTTP.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ContextFailed(EmbeddingError):
    """``chunk_context`` failed for a chunk, or returned no text. Mend it; see the cause."""


class TextsRefused(EmbeddingError):
    """Texts of some documents were refused; all other vectors were made and are kept.

    By the embedder, or by ``chunk_context``, which failed.

    Mend or delete these documents and call ``reembed`` again, which asks for what is missing
    only, or let it go without these vectors: ``skip_refused=True``.

    Attributes:
        reasons: Why, and for which chunks of the document, by ``(owner_id, document_id)``.
    """

    def __init__(
        self, message: str, *, reasons: Mapping[tuple[str, str], str] | None = None
    ) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


class DimensionMismatch(EmbeddingError):
    """The embedder returned vectors of another length than it announced.

    Attributes:
        expected: Dimensions announced.
        got: Dimensions received.
    """

    def __init__(self, message: str, *, expected: int = 0, got: int = 0) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got
