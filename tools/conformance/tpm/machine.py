"""A machine with a TPM in software: an AK, an EK, PCRs, a clock, and evidence of all that."""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY, dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from ..primitives import texts
from . import credential
from .signing import PrivateKey, sign
from .structures import AK_ATTRIBUTES, EK_LOW, ClockReading, PublicArea, split_selection

#: PolicySecret of the endorsement hierarchy (EK Credential Profile, B.6.2).
POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
#: An EK of template L-2, and an AK as the pin makes it.
EK_P256 = PublicArea(EK_LOW, aes=128, policy=POLICY_A)
AK_P256 = PublicArea(AK_ATTRIBUTES, "ecdsa-sha256")

BANKS = {"sha256": 32, "sha384": 48, "sha512": 64}
CAP_PCR = 15
_TICK_MS = 10


def _booted() -> dict[str, dict[int, bytes]]:
    """Return the PCRs of a boot; each value differs, and those that nothing extended are zero."""
    return {
        bank: {
            pcr: hashlib.new(bank, f"boot {pcr}".encode()).digest() if pcr < CAP_PCR else bytes(size)
            for pcr in range(24)
        }
        for bank, size in BANKS.items()
    }


@dataclass
class Machine:
    """A machine; *ak* and *ek* are keys in no TPM at all."""

    ak: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ek: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ak_area: PublicArea = AK_P256
    ek_area: PublicArea = EK_P256
    _: KW_ONLY
    pcrs: dict[str, dict[int, bytes]] = field(default_factory=_booted)
    clock: int = 1000
    reset_count: int = 7
    restart_count: int = 3
    fixed: bool = False

    @property
    def ak_public(self) -> bytes:
        """TPM2B_PUBLIC of the AK."""
        return self.ak_area.tpm2b(self.ak.public_key())

    @property
    def ak_name(self) -> bytes:
        """The AK's Name."""
        return self.ak_area.name(self.ak.public_key())

    @property
    def ek_public(self) -> bytes:
        """TPM2B_PUBLIC of the EK."""
        return self.ek_area.tpm2b(self.ek.public_key())

    def activate(self, blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the secret of a credential for this machine's AK.  Raises ValueError."""
        return credential.activate(self.ek_area, self.ek, self.ak_name, blob, encrypted_secret)

    def reading(self) -> ClockReading:
        """Return the TPM's clock, which moves on."""
        self.clock += _TICK_MS
        return ClockReading(self.clock, self.reset_count, self.restart_count)

    def values(self, selection: str) -> bytes:
        """Return the values of *selection*, one after the other."""
        bank, numbers = split_selection(selection)
        return b"".join(self.pcrs[bank][number] for number in numbers)

    def digest(self, values: bytes) -> bytes:
        """Return the digest over PCR values that a quote has: by the AK's hash."""
        return hashlib.new(self.ak_area.scheme.partition("-")[2], values).digest()

    def sign(self, message: bytes) -> bytes:
        """Return the AK's TPMT_SIGNATURE."""
        return sign(self.ak, self.ak_area.scheme, message, fixed=self.fixed)

    def extend(self, pcr: int, event: bytes) -> None:
        """Do TPM2_PCR_Event, in each bank."""
        for bank, values in self.pcrs.items():
            values[pcr] = texts.extend(bank, values[pcr], event)

    def boot(self, **changed: bytes) -> None:
        """Reset the TPM; *changed* are events of another boot, by ``pcr4`` and so on."""
        self.pcrs, self.reset_count = _booted(), (self.reset_count + 1) % 2**32
        for name, event in changed.items():
            self.extend(int(name.removeprefix("pcr")), event)
