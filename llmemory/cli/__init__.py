"""The command line ``llmemory``, from the extra ``cli``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command that the process was started with; return its exit code."""
    try:
        from llmemory.cli.app import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"cyclopts", "pathspec", "rich"}:
            raise
        sys.stderr.write(f'error: the command line needs {missing}; run: pip install ".[cli]"\n')
        return 1
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:])
