"""Runs the Python blocks of a page in order in one namespace: ``python run_page.py PAGE``.

A process for each page: a page may configure Django, which a process can do once.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from pathlib import Path

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser


def run(page: str) -> None:
    """Run the blocks, with ``await`` at the top level."""
    with asyncio.Runner() as runner:

        def evaluate(example: Example) -> None:
            source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
            code = compile(
                source, example.path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
            result = eval(code, example.namespace)
            if inspect.iscoroutine(result):
                runner.run(result)

        parsers = (CodeBlockParser("python", evaluate), SkipParser())
        document = Document.parse(page, *parsers)
        document.namespace["__name__"] = "__main__"
        for example in document.examples():
            example.evaluate()


if __name__ == "__main__":
    # Hidden blocks take their servers and files from the plugins of the tests.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    run(sys.argv[1])
