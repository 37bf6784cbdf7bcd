"""Read and write files that a command or a setting names, with a limit and a message."""

from __future__ import annotations

import sys
from pathlib import Path

from tang_attest.errors import Malformed, NotFound


def read_file(path: Path, limit: int) -> bytes:
    """At most *limit* bytes of *path* (``-`` is stdin).

    Raises ``file-unreadable``, and ``request-too-large`` when there is more.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        why = error.strerror if isinstance(error, OSError) else error
        raise NotFound("file-unreadable", f"File {path} cannot be read: {why}.") from None
    if len(data) > limit:
        raise Malformed("request-too-large", f"File {path} has more than {limit} bytes.")
    return data


def write_line(path: Path, text: str) -> None:
    """Write *text* and a newline to *path*, in place of what is there.  Raises ``file-unreadable``."""
    try:
        path.write_text(f"{text}\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise NotFound("file-unreadable", f"File {path} cannot be written: {why}.") from None
