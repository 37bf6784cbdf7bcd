"""Boot loader entries, and which of them systemd-boot starts next.

Source: UAPI.1 Boot Loader Specification; systemd-boot(7).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from predict.files import MAX_TEXT, MachineFiles, is_file, visible
from predict.plan import Plan
from predict.sentences import Unpredictable
from predict.text import SPACE, lines, of_path, to_path, words

MAX_ENTRY: Final = 1 << 16
"""Bytes of an entry; real ones have 500."""

_TRIES: Final = re.compile(r"\+[0-9]+(-[0-9]+)?$")
_PAIRS: Final = re.compile(r"([^0-9]*)([0-9]*)")
_SUFFIX: Final = re.compile(r"((?:\.[A-Za-z~][A-Za-z0-9~]*)*)$")


def all_entries(files: MachineFiles, pattern: str) -> list[Path]:
    """Return the files that *pattern* matches on every EFI system and boot partition."""
    return [path for directory in files.esp_directories() for path in visible(directory, pattern)]


def pick(files: MachineFiles, candidates: Sequence[Path], suffix: str) -> Path | None:
    """Return the one of *candidates*, which end in *suffix*, that systemd-boot starts: the one it is told, or
    the newest.
    """
    pattern = _default_pattern(files)
    best: tuple[str, Path] | None = None
    for candidate in candidates:
        if not is_file(candidate):
            continue
        stem = _TRIES.sub("", of_path(Path(candidate.name)).removesuffix(suffix))
        name = stem + suffix
        if pattern and not fnmatchcase(name, pattern) and not fnmatchcase(stem, pattern):
            continue
        if best is None or version_key(best[0]) < version_key(name):
            best = name, candidate
    return best[1] if best else None


def _default_pattern(files: MachineFiles) -> str:
    """Return which entry systemd-boot is told to take; empty when it is not told."""
    for variable in ("LoaderEntryOneShot", "LoaderEntryDefault"):
        if told := files.efi_variable(variable):
            return told
    pattern = ""
    path = files.esp_file(r"\loader\loader.conf")
    if path is not None:
        for key, value in settings(files.text(path, MAX_TEXT)):
            if key == "default":
                pattern = value
    if pattern == "@saved":
        return files.efi_variable("LoaderEntryLastBooted") or pattern
    return pattern


def settings(content: str) -> list[tuple[str, str]]:
    """Return the keys and values of an entry or of loader.conf, without comments, in their order."""
    found = []
    for line in lines(content.replace("\0", "")):
        key = next(iter(words(line)), "")
        found.append((key, line.strip(SPACE).removeprefix(key).lstrip(SPACE)))
    return found


def read(plan: Plan, path: Path) -> None:
    """Let the entry in *path* be started next.  Raises :class:`Unpredictable` if it cannot be read."""
    base = path.parent.parent.parent
    target, options = plan.target, []
    target.entry, target.kernel = path, None
    target.initrds.clear()
    target.initrd_names.clear()
    for key, value in settings(plan.files.text(path, MAX_ENTRY)):
        file = base / to_path(value.removeprefix("/"))
        if key in {"linux", "efi"}:
            target.kernel = file
        elif key == "initrd":
            target.initrds.append(file)
            target.initrd_names.append(value.replace("/", "\\"))
        elif key == "options":
            options.append(value)
        elif key == "uki":
            target.uki = file
    target.options = " ".join(options)
    plan.notes.append(f"the next boot is taken to be that of {plan.files.shown(path)}")


def next_entry(plan: Plan) -> Path:
    """Return the entry that is started next.  Raises :class:`Unpredictable` if there is none."""
    candidates = all_entries(plan.files, "loader/entries/*.conf")
    found = pick(plan.files, candidates, ".conf")
    if found is None:
        raise Unpredictable("there is no boot loader entry")
    return found


# --- versions -----------------------------------------------------------------------------------------------


def version_key(name: str) -> tuple[list[list[int]], list[list[int]], str]:
    """Return a sort key for file names with version numbers in them, in the order of ``sort -V``.

    The names are compared without their suffixes first, then with them, and by bytes in the end.
    """
    return _parts(_SUFFIX.sub("", name, count=1)), _parts(name), name


def _parts(name: str) -> list[list[int]]:
    """Return text and numbers in turn, from a text to a text: each a list of orders of characters, or of one
    number.

    The order of characters is that of Debian's versions: ``~``, the end, letters, everything else.
    """
    parts: list[list[int]] = []
    for text, number in _PAIRS.findall(name):
        parts += [[*map(_order, text), 0], [int(number or "0")]]
    return [*parts, [0]]


def _order(character: str) -> int:
    if character == "~":
        return -1
    if character.isascii() and character.isalpha():
        return ord(character)
    return ord(character) + 256
