"""Files that the service has to own or to read, seen as its user would: root may read everything, the service not.

Owners and modes are compared, without access(2): the command may run as root, or with root's ability to read.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from tang_attest.config import Settings
from tang_attest.doctor.finding import Finding, problem, well

#: The user that the packages make for the service, and its state directory.
_SERVICE: Final = "tang-attest"
_PACKAGED: Final = Path("/var/lib/tang-attest")
#: Files of the state directory that are named one by one; and the most that are looked at.
_NAMED: Final = 5
_LOOKED_AT: Final = 10_000
#: Settings that name a file or a directory which the service reads.
_READ: Final = (
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "console_certificate",
    "console_key",
    "webhook_secret",
    "owner_auth_file",
    "tang_dir",
    "hook_dir",
)


@dataclass(frozen=True, slots=True)
class ServiceUser:
    """The user as whom the service runs, with all of its groups."""

    name: str
    uid: int
    groups: frozenset[int]


def service_user(state: Path) -> ServiceUser | None:
    """Return the service's user: the owner of its state directory, or ``None`` when there is no directory.

    A packaged directory that still belongs to root is meant for the package's user.
    """
    try:
        owner = state.stat().st_uid
    except OSError:
        return None
    try:
        entry = pwd.getpwnam(_SERVICE) if owner == 0 and state == _PACKAGED else pwd.getpwuid(owner)
    except KeyError:  # no such name; or a number without one
        return ServiceUser(str(owner), owner, frozenset())
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return ServiceUser(entry.pw_name, entry.pw_uid, frozenset(groups))


def chown_command(state: Path) -> str | None:
    """Return the command that gives the service the files of *state* that belong to others, or ``None``."""
    user = service_user(state)
    foreign = _foreign(state, user) if user is not None else []
    return _command(state, user, foreign) if user is not None and foreign else None


def look_at_owners(settings: Settings, file: Path | None) -> Iterator[Finding]:
    """Check that the service's user owns its state, and can read *file* (of the settings) and what that names."""
    user = service_user(settings.state)
    if user is None:
        return
    problems = [*_state(settings.state, user), *_files(settings, file, user)]
    yield from problems or [
        well("owner", f"the service's user {user.name} owns its state and can read its files")
    ]


def _state(state: Path, user: ServiceUser) -> Iterator[Finding]:
    foreign = _foreign(state, user)
    if foreign:
        names = ", ".join(map(str, foreign[:_NAMED]))
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        yield problem(
            "owner",
            f"the service runs as {user.name}, but {names}{more} {'belongs' if len(foreign) == 1 else 'belong'} to others",
            f"run '{_command(state, user, foreign)}'",
        )


def _files(settings: Settings, file: Path | None, user: ServiceUser) -> Iterator[Finding]:
    named: list[tuple[str, Path | None]] = [(name, getattr(settings, name)) for name in _READ]
    for name, path in [("settings", file), *named]:
        if path is None or path.is_relative_to("/run/credentials"):
            continue
        closed = _closed(path, user)
        if closed is not None:
            directory = closed.is_dir() and closed != path
            yield problem(
                name,
                f"the service runs as {user.name}, and cannot read {path}",
                f"run 'chgrp {shlex.quote(user.name)} {shlex.quote(str(closed))} && chmod g+{'x' if directory else 'r'} {shlex.quote(str(closed))}'",
            )


def _foreign(state: Path, user: ServiceUser) -> list[Path]:
    """Return what belongs to others in *state*, itself included."""
    found = (
        path for path in (state, *islice(_walk(state), _LOOKED_AT)) if _owner(path) not in (None, user.uid)
    )
    return list(found)


def _walk(directory: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(directory):
        yield from (Path(parent, name) for name in sorted([*directories, *files]))


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def _command(state: Path, user: ServiceUser, foreign: list[Path]) -> str:
    if len(foreign) <= _NAMED and state not in foreign:
        return shlex.join(["chown", f"{user.name}:", *map(str, foreign)])
    return shlex.join(["chown", "-R", f"{user.name}:", str(state)])


def _closed(path: Path, user: ServiceUser) -> Path | None:
    """Return the part of *path* that keeps *user* from reading it, or ``None``; a missing file is not closed."""
    if user.uid == 0:
        return None
    try:
        target = path.resolve(strict=True)
        parts = [*((parent, stat.S_IXOTH) for parent in reversed(target.parents)), (target, stat.S_IROTH)]
        for part, bit in parts:
            if not _may(part, bit, user):
                return part
    except OSError:
        return None
    return None


def _may(path: Path, bit: int, user: ServiceUser) -> bool:
    """Return True if the mode of *path* gives *user* the permission *bit* (of others); an ACL is not read."""
    found = path.stat()
    if found.st_uid == user.uid:
        return bool(found.st_mode & (bit << 6))
    if "system.posix_acl_access" in os.listxattr(path):
        return True
    if found.st_gid in user.groups:
        return bool(found.st_mode & (bit << 3))
    return bool(found.st_mode & bit)
