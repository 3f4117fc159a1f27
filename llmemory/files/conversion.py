"""Office files, PDF and HTML as Markdown, by the converters of the extra ``files``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from typing import Any
from zipfile import ZipFile

__all__ = ["CONVERTED", "TooLarge", "cleaned", "convert", "html_to_markdown", "is_installed"]

CONVERTED = frozenset({".docx", ".htm", ".html", ".pdf", ".pptx"})

_LIBRARIES = ("mammoth", "markdownify", "pptx", "pypdf")
_INVISIBLE = ("head", "noscript", "script", "style", "template")


class TooLarge(Exception):
    """A packed file is larger than allowed when it is unpacked."""


def is_installed() -> bool:
    """Return whether the extra ``files`` is installed."""
    return all(find_spec(name) is not None for name in _LIBRARIES)


def convert(data: bytes, suffix: str, *, max_bytes: int) -> str:
    """Return the text of a file, headings, lists and tables as Markdown.

    Args:
        data: What the file holds.
        suffix: Its ending, one of CONVERTED.
        max_bytes: How large a packed file may be unpacked.

    Raises:
        ModuleNotFoundError: The extra ``files`` is not installed.
        TooLarge: It is larger unpacked.
        Exception: Whatever a converter raises for a file that is broken.
    """
    if suffix in {".docx", ".pptx"}:
        _check_unpacked_size(data, max_bytes)
    match suffix:
        case ".pdf":
            text = _pdf_text(data)
        case ".docx":
            text = _docx_text(data)
        case ".pptx":
            text = "\n\n".join(_slides(data))
        case _:
            text = html_to_markdown(data)
    return cleaned(text)


def cleaned(text: str) -> str:
    """Return `text` without what PostgreSQL cannot store; half characters are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")


def html_to_markdown(html: bytes | str) -> str:
    """Return what a page shows, without links' targets and pictures.

    Args:
        html: Text, or bytes whose encoding is told by the page or found out.
    """
    from bs4 import BeautifulSoup
    from markdownify import ATX, MarkdownConverter

    # As a file: Beautiful Soup warns of a short text that it could be meant as a file's name.
    source = BytesIO(html.encode(errors="replace") if isinstance(html, str) else html)
    encoding = "utf-8" if isinstance(html, str) else None
    page = BeautifulSoup(source, "html.parser", from_encoding=encoding)
    for element in page.find_all(_INVISIBLE):
        element.decompose()
    # Words are searched as they are written, so nothing is escaped.
    converter = MarkdownConverter(
        heading_style=ATX,
        strip=["a", "img"],
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    )
    return str(converter.convert_soup(page)).strip()


def _pdf_text(data: bytes) -> str:
    from pypdf import PdfReader

    pages = PdfReader(BytesIO(data)).pages
    return "\n\n".join(text for page in pages if (text := page.extract_text().strip()))


def _docx_text(data: bytes) -> str:
    import mammoth

    without_pictures: list[Any] = []
    result = mammoth.convert_to_html(BytesIO(data), convert_image=lambda picture: without_pictures)
    return html_to_markdown(result.value)


def _slides(data: bytes) -> Iterator[str]:
    from pptx import Presentation

    for slide in Presentation(BytesIO(data)).slides:
        title = slide.shapes.title
        heading = title.text_frame.text.strip() if title is not None else ""
        parts = [f"# {' '.join(heading.split())}"] if heading else []
        parts += (text for shape in slide.shapes if shape != title for text in _shape_texts(shape))
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
            parts.append(notes.text)
        if written := "\n\n".join(part.strip() for part in parts if part.strip()):
            yield written


def _shape_texts(shape: Any) -> Iterator[str]:
    if shape.has_text_frame:
        yield shape.text_frame.text
    elif getattr(shape, "has_table", False):
        rows = [[" ".join(cell.text.split()) for cell in row.cells] for row in shape.table.rows]
        yield "\n".join(f"| {' | '.join(row)} |" for row in rows)
    else:
        for member in getattr(shape, "shapes", ()):
            yield from _shape_texts(member)


def _check_unpacked_size(data: bytes, max_bytes: int) -> None:
    with ZipFile(BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > max_bytes:
            raise TooLarge
