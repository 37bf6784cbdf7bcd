"""Keys at rest, and the means to make and open them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Final, Protocol

from tang_attest.ports.audit import AuditEntry
from tang_attest.protocol.exchange import Multiplier

#: The holder of a key that serves no device: a signing key, or an open exchange key (plain Tang).
OPEN: Final = "open"


def holder(ak_name: bytes, ak_spki: bytes) -> str:
    """The machine that an exchange key answers, as the encrypted key itself names it: its AK's Name, and its
    AK's key.
    """
    return f"{ak_name.hex()}:{hashlib.sha256(ak_spki).hexdigest()}"


@dataclass(frozen=True, slots=True)
class EncryptedKey:
    """An exchange or signing key at rest.

    ``jwe`` is a compact JWE around its PKCS #8 DER, or around the key as the server's TPM has wrapped it.

    ``use`` is ``exchange`` or ``sign``; ``public`` the public JWK (crv, kty, x, y).  A rotated key is not
    advertised, and still serves the volumes that were bound to it; a retired one serves none.  ``holder`` is the machine that it serves,
    by the device's row as it is now (:func:`holder`): the key opens only if it was encrypted for the same
    holder.
    """

    kid: str
    use: str
    curve: str
    public: Mapping[str, str]
    jwe: str
    _: KW_ONLY
    created_at: datetime
    rotated_at: datetime | None = None
    holder: str = OPEN
    retired_at: datetime | None = None


class KeyStore(Protocol):
    """Private keys: made, encrypted and opened."""

    def create(self, use: str, curve: str, now: datetime) -> EncryptedKey:
        """Create a key of *curve* (``P-256``, ``P-384``, ``P-521``), made in this process."""

    async def create_exchange(self, curve: str, now: datetime, holder: str) -> EncryptedKey:
        """Create an exchange key for *holder*: in the server's TPM, if it uses one, on the TPM's strongest
        curve; else on *curve*.

        Raises ``server-tpm-unavailable``.
        """

    async def check_tpm(self) -> None:
        """Raise ``server-tpm-unavailable`` when the server uses a TPM and that does not answer."""

    def is_in_tpm(self, key: EncryptedKey) -> bool:
        """Return True if only a TPM can use *key*, without opening it."""

    def open_exchange(self, key: EncryptedKey) -> Multiplier:
        """Return the exchange key, ready for use.

        Raises ``internal`` when it was encrypted under another secret, ``registry-tampered`` when for another
        holder.
        """


class EncryptedKeyStore(Protocol):
    """Exchange and signing keys at rest."""

    async def add_key(self, key: EncryptedKey, device: str | None, audit: AuditEntry) -> None:
        """Add a signing key or an exchange key (an open one, or a further one of *device*).

        Raises ``not-found`` (the device), ``name-taken`` (the key).
        """

    async def list_keys(self) -> Sequence[tuple[EncryptedKey, str | None]]:
        """Return every key with its device's name, newest first."""

    async def get_key(self, kid: str) -> tuple[EncryptedKey, str | None]:
        """Return the key *kid* with its device's name.  Raises ``not-found``."""

    async def server_keys(self) -> Sequence[EncryptedKey]:
        """Return the keys that belong to no device and are not retired: signing keys and open exchange keys,
        newest first.
        """

    async def count_signing_keys(self) -> tuple[int, int]:
        """Return the number of rows, and of those that this server, or one with its secret, wrote."""

    async def rotate_keys(self, kids: Sequence[str], at: datetime, audit: AuditEntry) -> None:
        """Mark keys as rotated.  Raises ``not-found``; then none is rotated."""

    async def retire_key(self, kid: str, at: datetime, audit: AuditEntry) -> None:
        """Let *kid* answer no more; decisions that are committed later see it.

        Raises ``not-found``, ``key-retired`` when it is already, and ``key-last`` for the last key of its
        holder that is advertised.
        """

    async def reinstate_key(self, kid: str, audit: AuditEntry) -> None:
        """Let a retired key answer again.  Raises ``not-found``, ``key-not-retired``."""
