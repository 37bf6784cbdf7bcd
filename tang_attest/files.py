"""Read and write files that a command or a setting names, with a limit and a message."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, Final

from tang_attest.errors import Malformed, NotFound, Unavailable

#: Failures of the disk, the quota or the network behind a path that is right.
_NO_ROOM: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENODEV,
        errno.ENXIO,
    }
)


def read_file(path: Path, limit: int) -> bytes:
    """At most *limit* bytes of *path* (``-`` is stdin).

    Raises ``file-unreadable``, and ``request-too-large`` when there is more.
    """
    if str(path) != "-":
        return read_path(path, limit)
    with reading(path):
        return _within(path, sys.stdin.buffer.read(limit + 1), limit)


def read_path(path: Path, limit: int) -> bytes:
    """As :func:`read_file`, of a file that may be called ``-``."""
    with reading(path), path.open("rb") as file:
        return _within(path, file.read(limit + 1), limit)


def write_line(path: Path, text: str) -> None:
    """Write *text* and a newline to *path*, in place of what is there.  Raises ``file-unwritable``."""
    with writing(path):
        path.write_text(f"{text}\n")


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn failures of the block to read *path* into ``file-unreadable``."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise NotFound("file-unreadable", f"File {path} cannot be read: {_why(error)}.") from None


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn failures of the block to write *path* into ``file-unwritable``, or ``file-unreadable`` for a path that is wrong.

    A reader that left is no failure: BrokenPipeError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        sentence = f"File {path} cannot be written: {_why(error)}."
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise Unavailable("file-unwritable", sentence) from None
        raise NotFound("file-unreadable", sentence) from None


class NamedFile(RawIOBase):
    """*file*, whose failures name *path*: ``file-unreadable``, ``file-unwritable``."""

    def __init__(self, file: BinaryIO, path: Path | str) -> None:
        super().__init__()
        self._file, self._path = file, path

    def read(self, size: int = -1) -> bytes:
        """Return at most *size* bytes."""
        with reading(self._path):
            return self._file.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line, or at most *size* bytes of it."""
        with reading(self._path):
            return self._file.readline(-1 if size is None else size)

    def write(self, data: object) -> int:
        """Write *data*, a bytes-like object; return its length."""
        with writing(self._path):
            return self._file.write(data)  # type: ignore[call-overload,no-any-return]


def _within(path: Path, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise Malformed("request-too-large", f"File {path} has more than {limit} bytes.")
    return data


def _why(error: OSError | ValueError) -> object:
    """Return the reason in words; a ValueError is that of a path with a null character."""
    return error.strerror if isinstance(error, OSError) else error
