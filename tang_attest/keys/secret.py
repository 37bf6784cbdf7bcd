"""The server secret: the source of every key that encrypts or authenticates the server's records.

Replicas that share a database share this file.  Purposes never share a key: each has its own, derived with
HKDF (RFC 5869) from the label that names it.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tang_attest.errors import Conflict, Malformed, NotFound, TangAttestError
from tang_attest.files import writing

_SIZE: Final = 32
#: The name of the systemd credential that replaces the file (LoadCredential= or LoadCredentialEncrypted=).
CREDENTIAL: Final = "tang-attest.kek"
FILE_NAME: Final = "kek"
#: The secret that a rotation introduces.
NEW_NAME: Final = "kek.new"


class ServerSecret:
    """32 secret bytes; its ``repr`` does not show them."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != _SIZE:
            raise Malformed("key-malformed", f"The key-encryption key has {len(key)} bytes, not {_SIZE}.")
        self._key = key

    def __repr__(self) -> str:
        return "ServerSecret(...)"

    def text(self) -> str:
        """Return the secret itself, base64url: for the file that keeps it, and a backup that was asked to
        hold it.
        """
        return base64.urlsafe_b64encode(self._key).decode()

    def derive(self, label: str) -> bytes:
        """Return the 32-byte key for the purpose that *label* names."""
        info = f"tang-attest/v1 {label}".encode()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self._key)


def make_directory(directory: Path) -> None:
    """Make a state directory, mode 0700, unless it exists.  Raises ``file-unreadable``."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NotFound(
            "file-unreadable", f"Directory {directory} cannot be made: {error.strerror}."
        ) from None


def create_secret(directory: Path) -> ServerSecret:
    """Create a secret and keep it.  Raises as :func:`keep_secret`."""
    secret = ServerSecret(os.urandom(_SIZE))
    keep_secret(directory, secret)
    return secret


def replace_secret(directory: Path) -> Path:
    """Put the secret in *directory*/kek.new into use; return the file that keeps the old one, for older
    backups.

    Raises ``file-unreadable``; then it can be called again.
    """
    path, new = directory / FILE_NAME, directory / NEW_NAME
    try:
        stamp = int(path.stat().st_mtime)
        kept = directory / f"{FILE_NAME}.old-{stamp}"
        if not os.path.lexists(kept):
            os.link(path, kept)
        new.replace(path)
        _sync(directory)
    except OSError as error:
        raise NotFound("file-unreadable", f"File {path} cannot be replaced: {error.strerror}.") from None
    return kept


def keep_secret(directory: Path, secret: ServerSecret, name: str = FILE_NAME) -> None:
    """Write *secret* to the file *name* in *directory*, mode 0400, durable on return.

    Raises ``state-exists``, and ``file-unreadable`` or ``file-unwritable`` when it cannot be made or written; then there
    is no file.
    """
    path = directory / name
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    except FileExistsError:
        raise Conflict("state-exists", f"There is a key-encryption key at {path} already.") from None
    except OSError as error:
        raise NotFound("file-unreadable", f"File {path} cannot be made: {error.strerror}.") from None
    try:
        with writing(path):
            with os.fdopen(descriptor, "wb") as file:
                file.write(secret.text().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            _sync(directory)
    except TangAttestError:
        path.unlink(missing_ok=True)
        raise


def _sync(directory: Path) -> None:
    """Flush *directory*: a new file's name is durable only once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_new_secret(directory: Path) -> ServerSecret:
    """Return the secret that a rotation introduces; create it if there is none.  Raises as
    :func:`keep_secret`.
    """
    path = directory / NEW_NAME
    try:
        return parse_secret(path.read_bytes(), f"File {path}")
    except FileNotFoundError:
        secret = ServerSecret(os.urandom(_SIZE))
        keep_secret(directory, secret, NEW_NAME)
        return secret
    except OSError as error:
        raise NotFound("file-unreadable", f"File {path} cannot be read: {error.strerror}.") from None


def load_secret(directory: Path) -> ServerSecret:
    """Return the secret of the state directory *directory*, or of the systemd credential if the service
    manager gave one.

    Raises ``state-missing``, ``permission-denied``, ``key-malformed``, and ``setting-invalid`` when others may read the file.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(credentials) / CREDENTIAL if credentials else None
    if credential is not None and credential.exists():
        # systemd grants the service's user access with an ACL, whose mask shows as the group's permission.
        path, forbidden = credential, 0o007
    else:
        path, forbidden = directory / FILE_NAME, 0o077
    try:
        # One open for both questions: the file that was checked is the one that is read.
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(256)
    except FileNotFoundError:
        raise NotFound("state-missing", f"There is no key-encryption key at {path}.") from None
    except PermissionError:
        raise NotFound(
            "permission-denied", f"You may not read {path}, the service's key-encryption key."
        ) from None
    except OSError as error:
        raise NotFound("file-unreadable", f"File {path} cannot be read: {error.strerror}.") from None
    if stat.S_IMODE(mode) & forbidden:
        raise Malformed(
            "setting-invalid", f"File {path} may be read by others than its owner; run 'chmod 0400 {path}'."
        )
    return parse_secret(text, f"File {path}")


def parse_secret(text: str | bytes, what: str) -> ServerSecret:
    """Return the secret that :meth:`ServerSecret.text` gave; *what* begins the sentence of ``key-malformed``."""
    try:
        return ServerSecret(base64.b64decode(text.strip(), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise Malformed("key-malformed", f"{what} is not a key-encryption key.") from None
