"""The files of the machine below one root directory, and their digests."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from predict.sentences import Unpredictable
from predict.text import from_utf16, of_bytes, of_path, plain, to_bytes

CHUNK: Final = 1 << 20
"""Bytes that are read and hashed at once."""

MAX_TEXT: Final = 1 << 20
"""Bytes of a configuration file; a grub.cfg with fifty kernels has 100 KB."""

MAX_FILE: Final = 1 << 32
"""Bytes of a file that is hashed: more than any kernel or initrd, and less than /proc/kcore pretends to have.
"""

MAX_VARIABLE: Final = 1 << 16
"""Bytes of an EFI variable."""

MAX_COMMAND_LINE: Final = 1 << 16
"""Bytes of /proc/cmdline; the kernel's own limit is 4 KB or less."""

ESP_DIRECTORIES: Final = ("boot/efi", "efi", "boot")
"""Directories where an EFI system partition, or the boot partition beside it, may be mounted."""

_LOADER_VENDOR: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


class MachineFiles:
    """Reads below *root* (text; empty for the running system) and hashes with *bank* (``sha256``)."""

    def __init__(self, root: str, bank: str) -> None:
        self.root = root
        self.bank = bank
        self._digests: dict[Path, bytes] = {}

    # --- names ----------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Return the file that the running system calls /*name*, in text."""
        return Path(os.fsdecode(to_bytes(f"{self.root}/{name}")))

    def known(self, path: Path) -> str:
        """Return *path* as the running system knows it, in text."""
        return of_path(path).removeprefix(self.root)

    def shown(self, path: Path) -> str:
        """Return *path* as the running system knows it, for a person."""
        return plain(self.known(path))

    def esp_directories(self) -> Iterator[Path]:
        """Yield where an EFI system or boot partition may be mounted, in the order of preference."""
        return (self.path(name) for name in ESP_DIRECTORIES)

    def esp_file(self, name: str) -> Path | None:
        r"""Return the file that the firmware calls *name* (``\EFI\BOOT\BOOTX64.EFI``), on any such partition.

        FAT does not tell upper from lower case.  A part ``..`` is passed over.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in {"", ".."}]
        for directory in self.esp_directories():
            found: Path | None = directory
            for part in parts:
                found = _entry(found, part) if found else None
            if found is not None and is_file(found):
                return found
        return None

    def esp_name(self, path: Path) -> str | None:
        r"""Return what a boot loader calls *path* (``\EFI\Linux\name.efi``); None if it is on no such
        partition.
        """
        for directory in self.esp_directories():
            if directory not in path.parents:
                continue
            if (directory / "loader").is_dir() or directory.stat().st_dev != directory.parent.stat().st_dev:
                return of_path(path).removeprefix(of_path(directory)).replace("/", "\\")
        return None

    def esp_twin(self, path: Path) -> Path | None:
        """Return the copy of *path* two directories deep on such a partition, where NixOS and kernel-install
        put it.

        Raises :class:`Unpredictable` if *path* cannot be read.
        """
        digest = self.digest(path)
        size = path.stat().st_size
        for directory in self.esp_directories():
            for candidate in visible(directory, "*/*/*"):
                if (
                    is_file(candidate)
                    and candidate.stat().st_size == size
                    and self.digest(candidate) == digest
                ):
                    return candidate
        return None

    # --- contents -------------------------------------------------------------------------------------------

    def hash(self, chunks: Iterable[bytes]) -> bytes:
        """Return the digest of *chunks*, one after the other."""
        digest = hashlib.new(self.bank)
        for chunk in chunks:
            digest.update(chunk)
        return digest.digest()

    def hash_text(self, text: str) -> bytes:
        """Return the digest of *text*."""
        return self.hash([to_bytes(text)])

    def digest(self, *paths: Path) -> bytes:
        """Return the digest of the files *paths*, one after the other.

        Raises :class:`Unpredictable` for one that is no file, or cannot be read.
        """
        if len(paths) == 1 and paths[0] in self._digests:
            return self._digests[paths[0]]
        digest = self.hash(chunk for path in paths for chunk in _chunks(path))
        if len(paths) == 1:
            self._digests[paths[0]] = digest
        return digest

    def text(self, path: Path, limit: int = MAX_TEXT) -> str:
        """Return the text of *path*.

        Raises :class:`Unpredictable` if it is no file, cannot be read, or has more than *limit* bytes.
        """
        if not is_file(path):
            raise Unpredictable(f"cannot read {of_path(path)}")
        return of_bytes(read_bounded(path, limit))

    def efi_variable(self, name: str) -> str | None:
        """Return the text of systemd-boot's EFI variable *name*; None if there is none, or it is no text."""
        path = self.path(f"sys/firmware/efi/efivars/{name}-{_LOADER_VENDOR}")
        try:
            # Four bytes of attributes come first.
            return from_utf16(read_bounded(path, MAX_VARIABLE)[4:])
        except Unpredictable:
            return None


def command_line(path: Path) -> str:
    """Return the kernel's command line in *path*; empty if it cannot be read."""
    try:
        content = read_bounded(path, MAX_COMMAND_LINE)
    except Unpredictable:
        return ""
    return of_bytes(content.replace(b"\0", b"")).rstrip("\n")


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of *path*.  Raises :class:`Unpredictable` if it cannot be read, or has more than
    *limit* bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise Unpredictable(f"cannot read {of_path(path)}") from error
    if len(content) > limit:
        raise Unpredictable(f"{of_path(path)} is over {limit} bytes")
    return content


def is_file(path: Path) -> bool:
    """Tell a regular file, or a link to one, from everything else; a name that no file can have is none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def visible(directory: Path, pattern: str) -> list[Path]:
    """Return the files below *directory* that *pattern* matches, sorted by bytes, without hidden ones."""
    try:
        found = [p for p in directory.glob(pattern) if not _hidden(p.relative_to(directory).parts)]
    except OSError:
        return []
    return sorted(found, key=os.fsencode)


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _entry(directory: Path, name: str) -> Path | None:
    """Return the entry *name* of *directory*: exactly, or else but for upper and lower case."""
    wanted = to_bytes(name)
    exact = directory / os.fsdecode(wanted)
    try:
        if exact.exists():
            return exact
    except (OSError, ValueError):
        return None
    for entry in visible(directory, "*"):
        if os.fsencode(entry.name).lower() == wanted.lower():
            return entry
    return None


def _chunks(path: Path) -> Iterator[bytes]:
    if not is_file(path):
        raise Unpredictable(f"cannot read {of_path(path)}")
    try:
        if path.stat().st_size > MAX_FILE:
            raise Unpredictable(f"{of_path(path)} is over {MAX_FILE} bytes")
        with path.open("rb") as file:
            yield from read_chunks(file)
    except OSError as error:
        raise Unpredictable(f"cannot read {of_path(path)}") from error


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of *file*."""
    read: Callable[[], bytes] = lambda: file.read(CHUNK)  # noqa: E731 - iter() takes a callable
    return iter(read, b"")
