"""systemd's signed PCR policies: the entry of a ``.pcrsig`` that vouches for the quoted value of PCR 11.

A ``.pcrsig`` (systemd-measure(1), ukify(1)) is ``{BANK: [{"pcrs": [11], "pkfp", "pol", "sig"}]}``.  ``pol`` is the
digest of a TPM2_PolicyPCR over the value (TPM 2.0 part 3, section 23.7), always SHA-256; ``sig`` is RSASSA-PKCS1-v1_5
over it.  From systemd 262 on an entry may have ``ref``: then the signature is over ``pol`` and the SHA-256 of the text,
as TPM2_PolicyAuthorize takes them.

Rules of this module:

* ``pol`` is computed from the quoted value, and only compared with the entry's.
* Only entries of the bank sha256 count: of others, systemd changed the hash of the signature (systemd#41051).
* An entry for another phase of the boot has another ``pol``.  An entry whose ``ref`` names another part of the boot
  than the initrd does not count.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tang_attest.errors import Malformed, Reason
from tang_attest.protocol.signed_values.keys import load_key

#: The PCR of systemd-stub and of the phases of the boot.
PCR: Final = 11
BANK: Final = "sha256"
#: Bytes of a ``.pcrsig`` as compact JSON, and its entries in all banks.
MAX_PCRSIG: Final = 16 * 1024
MAX_ENTRIES: Final = 32
#: Bytes of a file, of which a machine sends one bank.
MAX_FILE: Final = 64 * 1024
#: Characters of a member of an entry.  The longest is the signature of an RSA key of 4096 bits.
_MAX_TEXT: Final = 1024
#: Bytes of the signature of an RSA key of 2048 bits.  One of an EC key is shorter.
_SMALLEST_SIGNATURE: Final = 256
#: The part of the boot in which a machine unlocks.
_REFS: Final = (None, "initrd")

_TPM_CC_POLICY_PCR: Final = 0x17F
_TPM_ALG_SHA256: Final = 0x000B


@dataclass(frozen=True, slots=True)
class PcrSignature:
    """One signature: of the key with fingerprint ``pkfp`` (hex) over ``pol``, 32 bytes."""

    pkfp: str
    pol: bytes
    sig: bytes
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """Return of :func:`examine`: the keys that vouch for the value, and the reason that others do not."""

    keys: tuple[bytes, ...] = ()
    obstacle: Reason | None = None


def policy_digest(value: bytes) -> bytes:
    """Return ``pol`` for PCR 11 of the bank sha256 with *value*: 32 bytes (TPM 2.0 part 3, 23.7.2)."""
    selection = struct.pack(">IHB", 1, _TPM_ALG_SHA256, 3) + bytes(
        (1 << PCR >> shift) & 0xFF for shift in (0, 8, 16)
    )
    command = struct.pack(">I", _TPM_CC_POLICY_PCR)
    return hashlib.sha256(bytes(32) + command + selection + hashlib.sha256(value).digest()).digest()


@lru_cache(maxsize=128)
def fingerprint(der: bytes) -> str:
    """Return ``pkfp`` of the RSA key in *der* (SubjectPublicKeyInfo): SHA-256 of its PKCS #1 form, hex."""
    key = load_key(der)
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.PKCS1)).hexdigest()


def parse(data: bytes) -> tuple[PcrSignature, ...]:
    """Return the entries for PCR 11 of the bank sha256 in a file, unverified and once each: for people.

    Raises ``statement-malformed`` for a file without one.
    """
    if len(data) > MAX_FILE:
        raise _unreadable(f"it has more than {MAX_FILE} bytes")
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise _unreadable("it is no JSON") from None
    entries = tuple(dict.fromkeys(_entries(found)))
    if not entries:
        raise _unreadable(f"it has no entry for PCR {PCR} of the bank {BANK}")
    return entries


def signed_by(der: bytes, entries: Iterable[PcrSignature]) -> tuple[PcrSignature, ...]:
    """Return those of *entries* that the RSA key in *der* signed.  Raises ``signer-unsuitable`` for another key."""
    if not isinstance(load_key(der), rsa.RSAPublicKey):
        raise Malformed(
            "signer-unsuitable", "A .pcrsig is signed with an RSA key; keys on a curve sign statements."
        )
    wanted = fingerprint(der)
    return tuple(entry for entry in entries if entry.pkfp == wanted and _is_signed(der, entry))


def _unreadable(problem: str) -> Malformed:
    return Malformed("statement-malformed", f"The .pcrsig cannot be used: {problem}.")


def examine(pcrsig: object, value: bytes, keys: Iterable[bytes]) -> Examined:
    """Return the *keys* (DER) that signed *value* of PCR 11 (bank sha256) in *pcrsig*, a decoded JSON value.

    Nothing is raised: an entry that does not verify is as if it were not there.
    """
    problem = _too_much(pcrsig)
    if problem is not None:
        return Examined(obstacle=Reason("statement-malformed", f"The .pcrsig {problem}."))
    entries = tuple(_entries(pcrsig))
    wanted = policy_digest(value)
    fitting = [entry for entry in entries if entry.pol == wanted and entry.ref in _REFS]
    if not fitting:
        return Examined(obstacle=_no_entry(entries, wanted))
    by_fingerprint = {fingerprint(key): key for key in keys}
    signed: dict[bytes, None] = {}
    for entry in dict.fromkeys(fitting):
        key = by_fingerprint.get(entry.pkfp)
        if key is not None and key not in signed and _is_signed(key, entry):
            signed[key] = None
    if signed:
        return Examined(keys=tuple(signed))
    sentence = f"The .pcrsig is signed with no key that the policy trusts ({fitting[0].pkfp[:16]})."
    if all(len(entry.sig) < _SMALLEST_SIGNATURE for entry in fitting):
        sentence = "The .pcrsig is signed with no RSA key of 2048 bits or more, and no other counts."
    if any(entry.pkfp in by_fingerprint for entry in fitting):
        sentence = "The .pcrsig names a key that the policy trusts, and its signature is not that key's."
    return Examined(obstacle=Reason("statement-untrusted", sentence))


def _no_entry(entries: tuple[PcrSignature, ...], wanted: bytes) -> Reason:
    if not entries:
        return Reason("statement-malformed", f"The .pcrsig has no entry for PCR {PCR} of the bank {BANK}.")
    if any(entry.pol == wanted for entry in entries):
        return Reason(
            "statement-mismatch", "The .pcrsig is signed for another part of the boot than the initrd."
        )
    return Reason(
        "statement-mismatch",
        f"No signature of the .pcrsig is over the quoted PCR {PCR}: it is of another image or phase.",
    )


def _too_much(pcrsig: object) -> str | None:
    """Return the words that say what is wrong with *pcrsig* as a whole, or None."""
    if not isinstance(pcrsig, Mapping):
        return "is no JSON object"
    banks = [bank for bank in pcrsig.values() if isinstance(bank, list)]
    if sum(map(len, banks)) > MAX_ENTRIES:
        return f"has more than {MAX_ENTRIES} entries"
    if len(json.dumps(pcrsig, separators=(",", ":"))) > MAX_PCRSIG:
        return f"has more than {MAX_PCRSIG} bytes"
    return None


def _entries(pcrsig: object) -> Iterable[PcrSignature]:
    """Return the entries for PCR 11 of the bank sha256 that can be read."""
    bank = pcrsig.get(BANK) if isinstance(pcrsig, Mapping) else None
    for fields in bank if isinstance(bank, list) else ():
        if isinstance(fields, dict) and (entry := _entry(fields)) is not None:
            yield entry


def _entry(fields: Mapping[str, object]) -> PcrSignature | None:
    pkfp, pol, sig, ref = (fields.get(name) for name in ("pkfp", "pol", "sig", "ref"))
    if fields.get("pcrs") != [PCR] or not isinstance(ref, str | None):
        return None
    if not (isinstance(pkfp, str) and isinstance(pol, str) and isinstance(sig, str)):
        return None
    if max(map(len, (pkfp, pol, sig, ref or ""))) > _MAX_TEXT:
        return None
    try:
        return PcrSignature(pkfp.lower(), bytes.fromhex(pol), base64.b64decode(sig, validate=True), ref)
    except (ValueError, binascii.Error):
        return None


def _is_signed(der: bytes, entry: PcrSignature) -> bool:
    key = load_key(der)
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    ref = b"" if entry.ref is None else hashlib.sha256(entry.ref.encode()).digest()
    try:
        key.verify(entry.sig, entry.pol + ref, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
