"""``python tools/conformance`` and ``python -m tools.conformance``."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__:
    from .cli import main
else:
    # As a directory: the package is found beside it, and nothing else of the repository is needed.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from conformance.cli import main  # type: ignore[import-not-found, no-redef]  # the same module

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
