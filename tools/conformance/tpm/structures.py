"""TPM 2.0 structures in their wire format (Library, part 2): written as a TPM does, and read back strictly."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

ALGORITHMS: Final = {
    "rsa": 0x0001,
    "sha1": 0x0004,
    "aes": 0x0006,
    "sha256": 0x000B,
    "sha384": 0x000C,
    "sha512": 0x000D,
    "null": 0x0010,
    "rsassa": 0x0014,
    "rsapss": 0x0016,
    "ecdsa": 0x0018,
    "ecc": 0x0023,
    "cfb": 0x0043,
}
NAMES: Final = {number: name for name, number in ALGORITHMS.items()}
CURVE_IDS: Final = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}
SIZES: Final = {"secp256r1": 32, "secp384r1": 48, "secp521r1": 66}

GENERATED: Final = 0xFF544347
ST_QUOTE: Final = 0x8018
ST_TIME: Final = 0x8019

FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

_FIXED: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED
AK_ATTRIBUTES: Final = _FIXED | USER_WITH_AUTH | NO_DA | SIGN
EK_LOW: Final = _FIXED | ADMIN_WITH_POLICY | DECRYPT
EK_HIGH: Final = EK_LOW | USER_WITH_AUTH

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def sized(data: bytes) -> bytes:
    """Return a TPM2B of *data*."""
    return struct.pack(">H", len(data)) + data


def algorithm(name: str) -> bytes:
    """Return a TPM2_ALG_ID."""
    return struct.pack(">H", ALGORITHMS[name])


@dataclass(frozen=True)
class PublicArea:
    """The choices of a TPMT_PUBLIC that its key does not make.

    *scheme* is ``ecdsa-sha256`` and so on, or empty; *aes* the size of the symmetric key, or 0.
    """

    attributes: int
    scheme: str = ""
    name_hash: str = "sha256"
    aes: int = 0
    policy: bytes = b""

    def marshal(self, key: PublicKey) -> bytes:
        """Return the TPMT_PUBLIC of *key*."""
        symmetric = algorithm("null")
        if self.aes:
            symmetric = algorithm("aes") + struct.pack(">H", self.aes) + algorithm("cfb")
        name, _, hash_name = self.scheme.partition("-")
        scheme = algorithm(name) + algorithm(hash_name) if name else algorithm("null")
        kind = "rsa" if isinstance(key, rsa.RSAPublicKey) else "ecc"
        head = algorithm(kind) + algorithm(self.name_hash) + struct.pack(">I", self.attributes)
        return head + sized(self.policy) + symmetric + scheme + _unique(key)

    def tpm2b(self, key: PublicKey) -> bytes:
        """Return the TPM2B_PUBLIC of *key*."""
        return sized(self.marshal(key))

    def name(self, key: PublicKey) -> bytes:
        """Return the Name of *key* (part 1, section 16): the algorithm and the digest of its public area."""
        return algorithm(self.name_hash) + hashlib.new(self.name_hash, self.marshal(key)).digest()


def _unique(key: PublicKey) -> bytes:
    numbers = key.public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        exponent = 0 if numbers.e == 65537 else numbers.e
        modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
        return struct.pack(">HI", numbers.n.bit_length(), exponent) + sized(modulus)
    size = SIZES[numbers.curve.name]
    point = sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))
    return struct.pack(">H", CURVE_IDS[numbers.curve.name]) + algorithm("null") + point


@dataclass(frozen=True)
class ClockReading:
    """TPMS_CLOCK_INFO: milliseconds, two counters of 32 bits, and the safe bit."""

    clock: int
    reset_count: int
    restart_count: int = 0
    safe: int = 1


@dataclass(frozen=True)
class Quote:
    """A TPMS_ATTEST with a TPMS_QUOTE_INFO, and every way to write it wrong."""

    extra_data: bytes
    clock: ClockReading
    banks: Sequence[str]
    pcr_digest: bytes
    _: KW_ONLY
    magic: int = GENERATED
    kind: int = ST_QUOTE
    firmware: int = 0x0001000200030004

    def marshal(self) -> bytes:
        """Return its bytes; a kind other than a quote is followed by what a quote has."""
        head = struct.pack(">IH", self.magic, self.kind) + sized(b"") + sized(self.extra_data)
        clock = struct.pack(
            ">QIIB", self.clock.clock, self.clock.reset_count, self.clock.restart_count, self.clock.safe
        )
        banks = struct.pack(">I", len(self.banks)) + b"".join(_bank(bank) for bank in self.banks)
        return head + clock + struct.pack(">Q", self.firmware) + banks + sized(self.pcr_digest)


def _bank(selection: str) -> bytes:
    bank, numbers = split_selection(selection)
    bitmap = bytearray(3)
    for number in numbers:
        bitmap[number // 8] |= 1 << number % 8
    return algorithm(bank) + bytes([len(bitmap)]) + bytes(bitmap)


def split_selection(text: str) -> tuple[str, tuple[int, ...]]:
    """Return bank and PCR numbers of ``sha256:0,2,4,7``."""
    bank, _, numbers = text.partition(":")
    return bank, tuple(int(number) for number in numbers.split(",") if number)


class Reader:
    """Reads a structure from its beginning.  Raises ValueError when the bytes end early."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes."""
        if len(self.rest) < count:
            raise ValueError("the structure ends early")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def number(self, size: int) -> int:
        """Return the next *size* bytes as a number."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """Return the contents of a TPM2B."""
        return self.take(self.number(2))

    def end(self) -> None:
        """Raise ValueError when something is left."""
        if self.rest:
            raise ValueError(f"{len(self.rest)} bytes after its end")


def read_quote(data: bytes) -> Quote:
    """Return a quote.  Raises ValueError for anything else."""
    reader = Reader(data)
    magic, kind = reader.number(4), reader.number(2)
    if kind != ST_QUOTE:
        raise ValueError("no quote")
    reader.sized()
    extra = reader.sized()
    clock = ClockReading(reader.number(8), reader.number(4), reader.number(4), reader.number(1))
    firmware, banks = reader.number(8), []
    for _ in range(reader.number(4)):
        bank = NAMES.get(reader.number(2), "unknown")
        bits = int.from_bytes(reader.take(reader.number(1)), "little")
        banks.append(f"{bank}:" + ",".join(str(bit) for bit in range(32) if bits >> bit & 1))
    digest = reader.sized()
    reader.end()
    return Quote(extra, clock, banks, digest, magic=magic, firmware=firmware)


@dataclass(frozen=True)
class ReadKey:
    """A TPM2B_PUBLIC that was read: its key, scheme (``ecdsa-sha256`` or empty), attributes and Name."""

    key: PublicKey
    area: PublicArea
    name: bytes


def read_public(data: bytes) -> ReadKey:
    """Return the key of a TPM2B_PUBLIC of type RSA or ECC.  Raises ValueError or KeyError."""
    outer = Reader(data)
    area = outer.sized()
    outer.end()
    reader = Reader(area)
    kind, name_hash = NAMES[reader.number(2)], NAMES[reader.number(2)]
    attributes, policy, aes, scheme = reader.number(4), reader.sized(), 0, ""
    if NAMES[reader.number(2)] != "null":
        aes = reader.number(2)
        reader.number(2)
    if (name := NAMES[reader.number(2)]) != "null":
        scheme = f"{name}-{NAMES[reader.number(2)]}"
    key: PublicKey
    if kind == "rsa":
        reader.number(2)
        exponent = reader.number(4) or 65537
        key = rsa.RSAPublicNumbers(exponent, int.from_bytes(reader.sized(), "big")).public_key()
    else:
        curve = {3: ec.SECP256R1(), 4: ec.SECP384R1()}[reader.number(2)]
        if NAMES[reader.number(2)] != "null":
            raise ValueError("a key derivation scheme")
        x, y = (int.from_bytes(reader.sized(), "big") for _ in "xy")
        key = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    reader.end()
    found = algorithm(name_hash) + hashlib.new(name_hash, area).digest()
    return ReadKey(key, PublicArea(attributes, scheme, name_hash, aes, policy), found)
