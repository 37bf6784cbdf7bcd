"""The files that tpm2-tools write: public keys, signatures and PCR values.

Rules of this module:

* A file's kind is recognized from what it must be, never tried one way after the other until something fits.
* Nothing here believes a file.  A PCR file's own selection is returned only so that it can be compared with
  the signed one: a program that prints it instead is open to CVE-2024-29039.

Layouts: tpm2-tools 5.4, ``lib/pcr.c`` (PCR files) and ``lib/tpm2_convert.c`` (signatures).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tang_attest.errors import Malformed
from tang_attest.protocol import tpm
from tang_attest.protocol.tpm import AttestationKey, Signature
from tang_attest.protocol.values.pcr import BANK_SIZES

PcrFormat = Literal["serialized", "values"]

#: Bank and PCR numbers, as in :class:`tang_attest.protocol.tpm.Attest`.
Banks = tuple[tuple[str, tuple[int, ...]], ...]

#: A ``TPML_DIGEST`` in memory: a count, and 8 times a ``TPM2B_DIGEST`` of 2 + 64 bytes.
_DIGEST_LIST: Final = 4 + 8 * 66
#: A ``TPML_PCR_SELECTION`` in memory: a count, and 16 times (hash, size, 4 bytes of bitmap, 1 of padding).
_SELECTION_LIST: Final = 4 + 16 * 8
#: The TPM answers with at most 8 digests at a time, so tpm2-tools keep up to 32 lists (``TPM2_MAX_PCRS``).
_MAX_LISTS: Final = 32

MAX_PCR_FILE: Final = _SELECTION_LIST + 4 + _MAX_LISTS * _DIGEST_LIST

#: RSA 2048, 3072 and 4096.
_PLAIN_RSA_SIZES: Final = (256, 384, 512)

_BANK_NAMES: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}


@dataclass(frozen=True, slots=True)
class PcrFile:
    """A PCR file: the values one after the other, and the selection it claims (``None``: it claims none)."""

    claimed: Banks | None
    values: bytes


def public_area(data: bytes) -> bytes | None:
    """The TPM2B_PUBLIC of a file with a TPM2B_PUBLIC or TPMT_PUBLIC; ``None`` if it is PEM.

    The first two bytes tell which: a TPM2B_PUBLIC begins with its size, a TPMT_PUBLIC with its type (1 or
    0x23).

    Raises :class:`Malformed` ``key-malformed``.  Not checked: what a key that is neither PEM nor TPMT holds.
    """
    if data.startswith(b"-----BEGIN "):
        return None
    if len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2:
        return data
    if data[:2] in (b"\x00\x01", b"\x00\x23"):
        try:
            return tpm.public_from_tpmt(data)
        except Malformed as error:
            raise Malformed("key-malformed", error.sentence) from error
    raise Malformed("key-malformed", "The public key is neither PEM nor TPM2B_PUBLIC nor TPMT_PUBLIC.")


def parse_signature(data: bytes, key: AttestationKey) -> Signature:
    """Read a signature file: a TPMT_SIGNATURE, or ``plain`` (``tpm2 quote -f plain``).

    A plain signature names no scheme, so it is taken as one of *key*'s own.  Plain RSA is exactly as long as
    the modulus, and a TPMT_SIGNATURE is 6 bytes longer; plain ECDSA is a DER sequence (0x30), and a
    TPMT_SIGNATURE begins with 0x00.

    Raises :class:`Malformed` as :func:`tang_attest.protocol.tpm.parse_signature`.
    """
    plain = data[:1] == b"\x30" if key.scheme == "ecdsa" else len(data) in _PLAIN_RSA_SIZES
    if plain:
        return Signature(key.scheme, key.hash_name, data)
    return tpm.parse_signature(data)


def parse_pcr_file(data: bytes, signed: Banks, fmt: PcrFormat | None = None) -> PcrFile:
    """Read the PCR file of a quote over the *signed* selection: ``serialized`` or ``values``.

    Without *fmt* the length decides: no selection of one bank has values as long as a serialized file.

    Raises :class:`Malformed` ``evidence-malformed``.  Not checked: that the claimed selection is *signed*.
    """
    if fmt is None:
        fmt = "serialized" if _is_serialized_length(len(data)) else "values"
    if fmt == "serialized":
        return _parse_serialized(data)
    expected = sum(BANK_SIZES.get(bank, 0) * len(pcrs) for bank, pcrs in signed)
    if len(data) != expected:
        raise Malformed(
            "evidence-malformed",
            f"The PCR file has {len(data)} bytes, not the {expected} of the quoted PCRs.",
        )
    return PcrFile(None, data)


def _is_serialized_length(length: int) -> bool:
    lists, rest = divmod(length - _SELECTION_LIST - 4, _DIGEST_LIST)
    return rest == 0 and 1 <= lists <= _MAX_LISTS


def _parse_serialized(data: bytes) -> PcrFile:
    """C structures as x86 has them in memory; little-endian on every machine since tpm2-tools 4.2."""
    if not _is_serialized_length(len(data)):
        raise Malformed("evidence-malformed", f"A serialized PCR file cannot have {len(data)} bytes.")
    claimed = _claimed_banks(data[:_SELECTION_LIST])
    lists = data[_SELECTION_LIST + 4 :]
    (count,) = struct.unpack_from("<I", data, _SELECTION_LIST)
    if count * _DIGEST_LIST != len(lists):
        raise Malformed(
            "evidence-malformed", f"The PCR file says it has {count} lists of digests; it has not."
        )
    values = [
        digest
        for start in range(0, len(lists), _DIGEST_LIST)
        for digest in _digests(lists[start : start + _DIGEST_LIST])
    ]
    _check_sizes(claimed, values)
    return PcrFile(claimed, b"".join(values))


def _claimed_banks(data: bytes) -> Banks:
    (count,) = struct.unpack_from("<I", data)
    if not 1 <= count <= 16:
        raise Malformed("evidence-malformed", f"The PCR file has {count} selections; it can have 1 to 16.")
    banks = []
    for index in range(count):
        algorithm, size, bitmap = struct.unpack_from("<HB4s", data, 4 + 8 * index)
        if size > len(bitmap):
            raise Malformed("evidence-malformed", f"The PCR file has a bitmap of {size} bytes.")
        pcrs = tuple(bit for bit in range(8 * size) if bitmap[bit // 8] >> (bit % 8) & 1)
        banks.append((_BANK_NAMES.get(algorithm, f"alg {algorithm:#06x}"), pcrs))
    return tuple(banks)


def _digests(data: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", data)
    if not 1 <= count <= 8:
        raise Malformed(
            "evidence-malformed", f"The PCR file has a list of {count} digests; it can have 1 to 8."
        )
    digests = []
    for offset in range(4, 4 + 66 * count, 66):
        (size,) = struct.unpack_from("<H", data, offset)
        if size > 64:
            raise Malformed("evidence-malformed", f"The PCR file has a digest of {size} bytes.")
        digests.append(data[offset + 2 : offset + 2 + size])
    return digests


def _check_sizes(claimed: Banks, values: Sequence[bytes]) -> None:
    """Each value has its bank's size: otherwise a byte could wander from one PCR to the next unnoticed."""
    sizes = [BANK_SIZES.get(bank) for bank, pcrs in claimed for _ in pcrs]
    if len(sizes) != len(values):
        raise Malformed(
            "evidence-malformed", f"The PCR file names {len(sizes)} PCRs and has {len(values)} values."
        )
    for size, value in zip(sizes, values, strict=True):
        if size is not None and size != len(value):
            raise Malformed(
                "evidence-malformed", f"The PCR file has a value of {len(value)} bytes, not {size}."
            )
