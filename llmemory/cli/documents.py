"""Commands on documents that are stored: search, list, show, delete, stats, health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import (
    output,
    print_content,
    print_documents,
    print_error,
    print_hits,
    print_json,
    print_values,
    remarks,
)
from llmemory.errors import DocumentNotFoundError
from llmemory.types import SearchType

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory

__all__ = ["delete", "health", "list_documents", "search", "show", "stats"]

EXCERPT_LINES = 10


def search(
    query: str,
    /,
    *,
    owner: str = "default",
    limit: int = 5,
    search_type: Annotated[SearchType, Parameter(name="--type")] = SearchType.HYBRID,
    full: bool = False,
    json: bool = False,
    settings: GivenSettings,
) -> None:
    """Print the passages that fit a question best, best first.

    Args:
        query: The question, or words to look for.
        owner: Whose documents to search.
        limit: Passages wanted.
        search_type: By words, by meaning (vector), or both.
        full: Print whole passages instead of the lines that fit best.
        json: Print everything known about each hit, as JSON.
        settings: What the global options and the environment say.
    """
    hits = with_memory(
        settings,
        lambda memory: memory.search(
            owner, query, limit=limit, search_type=search_type, highlight=not json
        ),
    )
    if json:
        print_json(hits)
    elif hits:
        print_hits(hits, line_limit=None if full else EXCERPT_LINES)
    else:
        remarks.print(f'Nothing found among the documents of owner "{owner}".', soft_wrap=True)


def list_documents(
    *,
    owner: str = "default",
    limit: int = 20,
    offset: int = 0,
    json: bool = False,
    settings: GivenSettings,
) -> None:
    """List documents, newest first.

    Args:
        owner: Whose documents.
        limit: Documents to list.
        offset: Documents to skip.
        json: Print the page as JSON.
        settings: What the global options and the environment say.
    """
    page = with_memory(
        settings, lambda memory: memory.list_documents(owner, limit=limit, offset=offset)
    )
    if json:
        print_json(page)
        return
    if page.documents:
        print_documents(page.documents)
    more = f"; --offset {offset + limit} shows more" if page.has_more else ""
    remarks.print(
        f'{len(page.documents)} of {page.total_count} documents of owner "{owner}"{more}',
        soft_wrap=True,
    )


def show(
    document_id: str,
    /,
    *,
    owner: str = "default",
    json: bool = False,
    settings: GivenSettings,
) -> None:
    """Print what is known about a document, then its text.

    Args:
        document_id: Its id, as search and list print it.
        owner: Whose document it is.
        json: Print all of it as JSON.
        settings: What the global options and the environment say.
    """
    document = with_memory(settings, lambda memory: memory.get_document(owner, document_id))
    if json:
        print_json(document)
        return
    print_values(document, leave_out="content")
    output.print()
    print_content(document.content or "")


def delete(document_ids: list[str], /, *, owner: str = "default", settings: GivenSettings) -> int:
    """Delete documents. An id that does not exist is reported; the others are deleted.

    Args:
        document_ids: Their ids, as search and list print them.
        owner: Whose documents they are.
        settings: What the global options and the environment say.
    """

    async def delete_each(memory: AsyncMemory) -> int:
        missing = 0
        for document_id in document_ids:
            try:
                await memory.delete_document(owner, document_id)
            except DocumentNotFoundError as error:
                print_error(f"{document_id}: {error}")
                missing += 1
        return missing

    missing = with_memory(settings, delete_each)
    output.print(f"{len(document_ids) - missing} deleted, {missing} not found")
    return 1 if missing else 0


def stats(*, owner: str = "default", json: bool = False, settings: GivenSettings) -> None:
    """Print how much an owner has stored.

    Args:
        owner: Whose documents.
        json: Print it as JSON.
        settings: What the global options and the environment say.
    """
    statistics = with_memory(settings, lambda memory: memory.get_statistics(owner))
    if json:
        print_json(statistics)
    else:
        print_values(statistics)


def health(*, json: bool = False, settings: GivenSettings) -> int:
    """Print whether the database answers and its tables fit; exit code 1 if not.

    Args:
        json: Print it as JSON.
        settings: What the global options and the environment say.
    """
    found = with_memory(settings, lambda memory: memory.health())
    if json:
        print_json(found)
    else:
        print_values(found)
    return 0 if found.healthy else 1
