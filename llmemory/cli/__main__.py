"""``python -m llmemory.cli`` is ``llmemory``."""

import sys

from llmemory.cli import main

if __name__ == "__main__":
    sys.exit(main())
