"""Text off a log, a disk or a command line: one character for each byte (Latin-1)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

SPACE: Final = " \t\n\v\f\r"
"""White space in the C locale; ``str.strip`` and ``str.split`` without it would take more of Latin-1."""

_UNPRINTABLE: Final = re.compile(r"[^ -~]")
_SPACES: Final = re.compile(f"[{SPACE}]+")
_PRINTABLE: Final = re.compile(rb"[\t\n -~]*")


def plain(text: str, limit: int = 300) -> str:
    """Return *text* as one line that no terminal interprets, at most *limit* characters long."""
    return _UNPRINTABLE.sub("?", text[:limit])


def of_bytes(data: bytes) -> str:
    """Return *data*, one character for each byte."""
    return data.decode("latin-1")


def to_bytes(text: str) -> bytes:
    """Return the bytes of *text*: the inverse of :func:`of_bytes`."""
    return text.encode("latin-1")


def of_argument(argument: str) -> str:
    """Return a word of the command line or of the environment as text."""
    return of_bytes(os.fsencode(argument))


def of_path(path: Path) -> str:
    """Return the name of *path* as text."""
    return of_bytes(os.fsencode(path))


def to_path(text: str) -> Path:
    """Return the file that *text* names."""
    return Path(os.fsdecode(to_bytes(text)))


def event_text(data: bytes) -> str | None:
    """Return the text of an event's *data*, without the one NUL that may end it; None if there is another
    NUL.
    """
    text = data.removesuffix(b"\0")
    return None if b"\0" in text else of_bytes(text)


def printable_text(data: bytes) -> str | None:
    """Return *data* if it is printable ASCII, tabs and newlines, without the one NUL that may end it;
    otherwise None.
    """
    text = data.removesuffix(b"\0")
    return of_bytes(text) if _PRINTABLE.fullmatch(text) else None


def from_utf16(data: bytes) -> str | None:
    """Return the printable ASCII of UTF-16LE *data*, without the one NUL that may end it; None if it is
    anything else.
    """
    if len(data) % 2 or any(data[1::2]):
        return None
    return printable_text(data[::2])


def to_utf16(text: str) -> bytes | None:
    """Return printable ASCII as the UTF-16LE with a NUL that EFI programs hash; None if *text* is anything
    else.
    """
    return None if _UNPRINTABLE.search(text) else f"{text}\0".encode("utf-16-le")


def lines(content: str) -> list[str]:
    """Split *content* at newlines; the last line may lack its own."""
    return content.removesuffix("\n").split("\n") if content else []


def words(text: str) -> list[str]:
    """Split *text* at white space of the C locale."""
    return [word for word in _SPACES.split(text) if word]
