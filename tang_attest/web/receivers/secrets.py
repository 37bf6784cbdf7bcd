"""Secrets in files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tang_attest.errors import Unavailable

_MOST: Final = 4096


def read_line(file: Path, what: str) -> str:
    """Return the first line of *file*, which holds *what*.  Raises ``notify-failed``; never with its contents."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST)
    except OSError as error:
        raise Unavailable("notify-failed", f"The {what} cannot be read: {file}: {error.strerror}.") from None
    first = data.split(b"\n", 1)[0].strip()
    try:
        text = first.decode()
    except UnicodeDecodeError:
        raise Unavailable("notify-failed", f"The {what} in {file} is not UTF-8.") from None
    if not text or not text.isprintable():
        raise Unavailable("notify-failed", f"The {what} in {file} is not one line of text.")
    return text
