"""IMA runtime measurement lists, written after Linux' own code and without any of ours."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed


def field(data: bytes) -> bytes:
    """A template field."""
    return struct.pack("<I", len(data)) + data


@dataclass(frozen=True)
class Measured:
    """One entry: as the list has it, and what is extended."""

    raw: bytes
    data: bytes
    violation: bool = False

    def extended(self, bank: str) -> bytes:
        """Digest with which Linux 5.8 and later extends *bank*."""
        size = hashlib.new(bank).digest_size
        return b"\xff" * size if self.violation else hashlib.new(bank, self.data).digest()

    def padded(self, bank: str) -> bytes:
        """Digest with which earlier kernels extend it."""
        return self.extended("sha1").ljust(hashlib.new(bank).digest_size, b"\0")


def measured(
    path: str,
    digest: bytes,
    extra: bytes = b"",
    *,
    hash_name: str = "sha256",
    template: str = "ima-sig",
    violation: bool = False,
    pcr: int = 10,
) -> Measured:
    """An entry of a template with fields."""
    data = field(hash_name.encode() + b":\0" + digest) + field(path.encode() + b"\0")
    if template != "ima-ng":
        data += field(extra)
    sha1 = bytes(20) if violation else hashlib.sha1(data).digest()  # noqa: S324 - what Linux writes
    raw = struct.pack("<I", pcr) + sha1 + field(template.encode()) + field(data)
    return Measured(raw, data, violation)


def measured_old(path: str, digest: bytes) -> Measured:
    """An entry of template ``ima``: SHA-1, and a padded name."""
    data = digest + path.encode().ljust(256, b"\0")
    sha1 = hashlib.sha1(data).digest()  # noqa: S324 - what Linux writes
    raw = struct.pack("<I", 10) + sha1 + field(b"ima") + digest + field(path.encode())
    return Measured(raw, data)


def boot_aggregate(pcrs: dict[int, bytes], *, bank: str = "sha256", last: int = 9) -> Measured:
    """The first entry of a list, over PCRs 0 to *last*."""
    values = b"".join(pcrs[pcr] for pcr in range(last + 1))
    return measured("boot_aggregate", hashlib.new(bank, values).digest(), hash_name=bank)


def raw(entries: Sequence[Measured]) -> bytes:
    """The list."""
    return b"".join(entry.raw for entry in entries)


def replayed(entries: Sequence[Measured], bank: str = "sha256", *, padded: bool = False) -> bytes:
    """PCR 10 after *entries*."""
    value = bytes(hashlib.new(bank).digest_size)
    for entry in entries:
        value = hashlib.new(bank, value + (entry.padded(bank) if padded else entry.extended(bank))).digest()
    return value


def sign(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, digest: bytes, key_id: bytes, hash_code: int = 4
) -> bytes:
    """security.ima as ``evmctl ima_sign`` writes it."""
    algorithm = {4: hashes.SHA256(), 5: hashes.SHA384(), 6: hashes.SHA512()}[hash_code]
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(digest, padding.PKCS1v15(), Prehashed(algorithm))
    else:
        signature = key.sign(digest, ec.ECDSA(Prehashed(algorithm)))
    return struct.pack(">BBB4sH", 3, 2, hash_code, key_id, len(signature)) + signature
