"""Cache of slow builds, outside the checkout, named by a hash of everything it was made from.

    path = entry("tree", key(base_key, *files), build)

The directory is $TANG_ATTEST_BOOT_CACHE, or tang-attest/boot in the user's cache.  All checkouts of a user share it.
An entry appears whole or not at all, and two processes never build the same one.  No process removes an entry that
another one uses.  Nothing depends on an entry being there: without the directory, all is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
CACHE: Final = Path(
    os.environ.get("TANG_ATTEST_BOOT_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tang-attest" / "boot"
)

#: The file descriptors of the locks on entries that this process uses; they end with it.
_in_use: Final[dict[Path, int]] = {}


def key(*inputs: str | Path) -> str:
    """A hash of strings and of files: their names below the checkout, their modes and their contents."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            text = item.read_bytes()
            digest.update(
                f"file {item.relative_to(ROOT)} {item.stat().st_mode & 0o111} {len(text)}\n".encode()
            )
        else:
            text = item.encode()
            digest.update(f"text {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()[:20]


def files_below(*directories: Path) -> Iterable[Path]:
    """Every file below the directories, in an order that does not change."""
    for directory in directories:
        yield from sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != ".pyc")


def entry(kind: str, name: str, build: Callable[[Path], None], *, keep: int = 3) -> Path:
    """The cached ``kind-name``; *build* makes it (a file or a directory) at the path that it is given."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{kind}-{name}"
    with (CACHE / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            partial = CACHE / f"{kind}.partial"
            _remove(partial)
            build(partial)
            partial.rename(path)
        _use(path)
        _prune(kind, keep)
    return path


def once(shared: Path, build: Callable[[Path], None]) -> Path:
    """Make something once for all processes of a test run, at *shared*; remains of a failed attempt are removed first."""
    done = shared.with_name(shared.name + ".done")
    with shared.with_name(shared.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _remove(shared)
            build(shared)
            done.touch()
    return shared


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.used")


def _use(path: Path) -> None:
    """Keep *path* until this process ends, and note the time of its use."""
    if path not in _in_use:
        _in_use[path] = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(_in_use[path], fcntl.LOCK_SH)
    os.utime(_lock_of(path))


def _prune(kind: str, keep: int) -> None:
    """Remove the entries used longest ago, unless a process uses them: the cache does not grow with every change."""
    entries = [path for path in CACHE.glob(f"{kind}-*") if path.name.count("-") == kind.count("-") + 1]
    entries.sort(
        key=lambda path: _lock_of(path).stat().st_mtime if _lock_of(path).exists() else 0, reverse=True
    )
    for path in entries[keep:]:
        with suppress(BlockingIOError), _lock_of(path).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
            _lock_of(path).unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
