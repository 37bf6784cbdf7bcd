"""The one secret of a server: everything secret or unforgeable it keeps is made from it.

Replicas that share a database share this file.  Purposes never share a key: each has its own, derived with HKDF
(RFC 5869) from the label that names it.
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

from tang_attest.errors import Conflict, Malformed, NotFound

_SIZE: Final = 32
#: The name of the systemd credential that replaces the file (LoadCredential= or LoadCredentialEncrypted=).
CREDENTIAL: Final = "tang-attest.kek"
FILE_NAME: Final = "kek"


class ServerSecret:
    """32 secret bytes.  Never prints itself."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != _SIZE:
            raise Malformed("key-malformed", f"The key-encryption key has {len(key)} bytes, not {_SIZE}.")
        self._key = key

    def __repr__(self) -> str:
        return "ServerSecret(...)"

    def derive(self, label: str) -> bytes:
        """The 32-byte key for the purpose that *label* names."""
        info = f"tang-attest/v1 {label}".encode()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self._key)


def create_secret(directory: Path) -> ServerSecret:
    """Make a new secret in *directory*/kek, mode 0400, durable on return.  Raises ``state-exists``."""
    key = os.urandom(_SIZE)
    path = directory / FILE_NAME
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    except FileExistsError:
        raise Conflict("state-exists", f"{path} exists already.") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.urlsafe_b64encode(key) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return ServerSecret(key)


def load_secret(directory: Path) -> ServerSecret:
    """The secret of the state in *directory*, or of the systemd credential if the service manager gave one.

    Raises ``state-missing``, ``key-malformed``, and ``setting-invalid`` when others may read the file.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(credentials) / CREDENTIAL if credentials else None
    path = credential if credential is not None and credential.exists() else directory / FILE_NAME
    try:
        # One open for both questions: what was checked is what is read.
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(256)
    except FileNotFoundError:
        raise NotFound("state-missing", f"There is no key-encryption key at {path}.") from None
    except OSError as error:
        raise NotFound("file-unreadable", f"{path} cannot be read: {error.strerror}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Malformed(
            "setting-invalid", f"{path} may be read by others than its owner; run 'chmod 0400 {path}'."
        )
    try:
        return ServerSecret(base64.b64decode(text.strip(), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise Malformed("key-malformed", f"{path} is not a key-encryption key.") from None
