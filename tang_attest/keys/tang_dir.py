"""A Tang key directory: ``*.jwk``, hidden by a leading dot, seen afresh at each request.

tangd reads every file at each request.  This server compares the files' names and inodes at each request, and
reads them only when something about those changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from tang_attest.errors import Malformed, Unavailable
from tang_attest.keys.jwk import EcSigner, generate, load_private
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.points import CURVES, parse_point
from tang_attest.service.tang.plain import KeySet, TangKey, load_json

#: A file that changed this recently may change again within the same tick of the file system's clock (4 ms at
#: most, 10 ms with CONFIG_HZ=100); git calls such a file racily clean.
_YOUNG_NS: Final = 50_000_000

#: Largest key file in bytes; a P-521 key of tangd-keygen has 300.
_FILE_LIMIT: Final = 65_536

#: name, inode, size, mtime, ctime.  The ctime also shows a change of permissions.
_Entry = tuple[str, int, int, int, int]

_log: Final = structlog.get_logger(__name__)


class TangDirectory:
    """Reads the keys in *path* as they are now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: tuple[_Entry, ...] | None = None
        self._keys = KeySet(())

    def current(self) -> KeySet:
        """The keys; the same object as before when no file changed.

        Makes a signing key and an exchange key when no visible file holds JSON, as tangd does.  Raises
        ``unavailable`` when the directory cannot be read, or needs keys and cannot be written.
        """
        try:
            started = time.time_ns()
            entries = self._scan()
            if entries != self._entries:
                # Forget first: after an error below, no keys may remain that the directory does not hold any
                # more.
                self._entries = None
                entries = self._load(entries)
                self._entries = None if _is_young(entries, started) else entries
        except OSError as error:
            sentence = f"The key directory {self._path} cannot be used: {error.strerror}."
            raise Unavailable("unavailable", sentence) from error
        return self._keys

    def _load(self, entries: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        key_set = _as_key_set(self._read_files(entries))
        if not any(key.signs and not key.hidden for key in key_set.keys):
            # Empty, or another process is making keys just now: the signing key comes last.
            with self._locked():
                entries = self._scan()
                files = self._read_files(entries)
                if all(name.startswith(".") for name in files):
                    self._generate()
                    entries = self._scan()
                    files = self._read_files(entries)
            key_set = _as_key_set(files)
        self._keys = key_set
        return entries

    def _scan(self) -> tuple[_Entry, ...]:
        entries = []
        with os.scandir(self._path) as files:
            for file in files:
                if file.name.endswith(".jwk"):
                    try:
                        status = file.stat()
                    except OSError:  # a symbolic link to nowhere, or removed just now
                        continue
                    entries.append(
                        (file.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                    )
        return tuple(sorted(entries))

    def _read_files(self, entries: tuple[_Entry, ...]) -> dict[str, Any]:
        """Return the JSON files by name; others are passed over, as tangd does."""
        files = {}
        for name, *_ in entries:
            try:
                files[name] = load_json(_read_regular(self._path / name))
            except _NoKeyFile as error:
                _log.warning("key file is passed over", file=name, error=str(error))
            except OSError as error:
                _log.warning("key file cannot be read", file=name, error=error.strerror)
            except ValueError as error:
                # Not the error's text: it might quote the file.
                _log.warning("key file is not JSON", file=name, error=type(error).__name__)
        return files

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process makes keys, so that a new directory gets one pair and not two."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _generate(self) -> None:
        for alg in ("ECMR", "ES512"):  # without an advertised signing key a directory answers no request
            jwk = generate(alg)
            name = f"{thumbprint(jwk)}.jwk"
            _write(self._path, name, json.dumps(jwk).encode())
            _log.info("key made", file=name, alg=alg)


class _NoKeyFile(OSError):
    """A directory entry that is never read."""


def _read_regular(path: Path) -> bytes:
    """Return the content of a regular file of at most :data:`_FILE_LIMIT` bytes.

    Raises :class:`_NoKeyFile` for a FIFO, a device, a directory or a larger file.  Opening never blocks: a
    FIFO without a writer would otherwise hold the event loop, SIGTERM included.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _NoKeyFile("It is no regular file.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(_FILE_LIMIT + 1)
    finally:
        os.close(descriptor)
    if len(content) > _FILE_LIMIT:
        raise _NoKeyFile(f"It has more than {_FILE_LIMIT} bytes.")
    return content


def _as_key_set(files: Mapping[str, Any]) -> KeySet:
    keys = (_as_key(name, jwk) for name, jwk in files.items())
    return KeySet(key for key in keys if key is not None)


def _is_young(entries: tuple[_Entry, ...], started: int) -> bool:
    """Return True if a file may have changed after it was read without a visible difference."""
    # A time in the future comes from a clock that was set back; it must not cause a read at each request.
    return any(0 <= started - ctime < _YOUNG_NS for *_, ctime in entries)


def _as_key(name: str, jwk: Any) -> TangKey | None:
    """A key with a usable point; ``d`` may be missing or wrong, tangd only notices in ``/rec``."""
    if not _has_point(jwk):
        _log.warning("key file is passed over", file=name, error=f"It is no key on {', '.join(CURVES)}.")
        return None
    try:
        private = load_private(jwk)
    except Malformed as error:
        _log.warning("key file has no usable private key", file=name, error=error.sentence)
        return TangKey.from_jwk(jwk, None, None, hidden=name.startswith("."))
    signer = EcSigner(private)
    usable = jwk.get("alg", signer.algorithm) == signer.algorithm
    return TangKey.from_jwk(
        jwk, signer if usable else None, ExchangeKey(private), hidden=name.startswith(".")
    )


def _has_point(jwk: Any) -> bool:
    if not isinstance(jwk, dict) or jwk.get("kty") != "EC":
        return False
    try:
        parse_point(jwk)
    except Malformed:
        return False
    return True


def _write(directory: Path, name: str, content: bytes) -> None:
    """A file of mode 0440, whole or not at all, durable on return."""
    # tangd and this server read only names that end in .jwk.
    temporary = directory / f".{name}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o440)
            os.fsync(file.fileno())
        temporary.rename(directory / name)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(directory)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
