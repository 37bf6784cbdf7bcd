"""PCR banks, selections and values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog.constants import measures_nothing

#: Size in bytes of one PCR of each bank we accept.  The SHA-1 bank is refused everywhere: a collision attack
#: on it is practical, so a quote over it proves nothing.
BANK_SIZES: Final[Mapping[str, int]] = {"sha256": 32, "sha384": 48, "sha512": 64}

#: A PC Client TPM has PCRs 0 to 23 (PC Client Platform TPM Profile, section "PCR Attributes").
PCR_COUNT: Final = 24

#: PCR values by PCR number; each value has the size of its bank.
PcrValues = Mapping[int, bytes]

_SELECTION = re.compile(r"([a-z0-9]+):([0-9]{1,2}(?:,[0-9]{1,2})*)")


@dataclass(frozen=True, slots=True)
class Selection:
    """One PCR bank and the PCRs chosen from it: ascending, distinct, not empty."""

    bank: str
    pcrs: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.bank not in BANK_SIZES:
            raise Malformed(
                "selection-invalid", f"PCR bank '{self.bank}' is not one of {', '.join(BANK_SIZES)}."
            )
        if not self.pcrs:
            raise Malformed("selection-invalid", "A selection needs at least one PCR.")
        if any(not 0 <= pcr < PCR_COUNT for pcr in self.pcrs):
            raise Malformed("selection-invalid", "A PCR number is 0 to 23.")
        if list(self.pcrs) != sorted(set(self.pcrs)):
            raise Malformed("selection-invalid", "PCR numbers are ascending and without repetition.")

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read ``sha256:0,2,4,7`` (tpm2-tools syntax, one bank, any order).

        Raises :class:`Malformed` ``selection-invalid``.
        """
        match = _SELECTION.fullmatch(text)
        if match is None:
            raise Malformed("selection-invalid", "A selection looks like sha256:0,2,4,7.")
        numbers = [int(number) for number in match[2].split(",")]
        if len(set(numbers)) != len(numbers):
            raise Malformed("selection-invalid", "A PCR is named twice.")
        return cls(match[1], tuple(sorted(numbers)))

    def __str__(self) -> str:
        return _spelled(self.bank, self.pcrs)

    @property
    def size(self) -> int:
        """Bytes of one value."""
        return BANK_SIZES[self.bank]

    def split(self, concatenated: bytes) -> dict[int, bytes]:
        """Cut values, put one after the other in ascending order, into values by PCR.

        Raises :class:`Malformed` ``evidence-malformed`` when the length is not exactly right.
        """
        size = self.size
        if len(concatenated) != size * len(self.pcrs):
            raise Malformed(
                "evidence-malformed",
                f"The PCR values have {len(concatenated)} bytes; {self} needs {size * len(self.pcrs)}.",
            )
        return {pcr: concatenated[index * size : (index + 1) * size] for index, pcr in enumerate(self.pcrs)}

    def digest(self, values: PcrValues, algorithm: str) -> bytes:
        """The ``pcrDigest`` of TPMS_QUOTE_INFO (TPM 2.0 part 2, section 10.12.1) over *values*.

        *algorithm* is the hash of the signing scheme, which is not always the bank's.
        """
        return hashlib.new(algorithm, b"".join([values[pcr] for pcr in self.pcrs])).digest()


@lru_cache
def _spelled(bank: str, pcrs: tuple[int, ...]) -> str:
    return f"{bank}:{','.join(map(str, pcrs))}"


def check_values(selection: Selection, values: PcrValues) -> None:
    """Raise ``values-invalid`` unless *values* has exactly one value of the right size for each selected PCR."""
    if set(values) != set(selection.pcrs):
        missing = sorted(set(selection.pcrs) - set(values))
        extra = sorted(set(values) - set(selection.pcrs))
        what = [
            f"PCR {', '.join(map(str, pcrs))} {word}"
            for pcrs, word in ((missing, "missing"), (extra, "extra"))
            if pcrs
        ]
        raise Malformed("values-invalid", f"The values do not fit {selection}: {'; '.join(what)}.")
    for pcr, value in values.items():
        if len(value) != selection.size:
            raise Malformed(
                "values-invalid",
                f"PCR {pcr} has {len(value)} bytes; a {selection.bank} value has {selection.size}.",
            )


def as_reset(values: PcrValues) -> bool:
    """Return True when every value is as a reset leaves it: all zeros or all ones."""
    return all(value in (bytes(len(value)), b"\xff" * len(value)) for value in values.values())


def nothing_measured(values: PcrValues) -> bool:
    """Return True when every value is as a reset leaves it, or as separators and other constants alone do.

    The bank follows from the size of a value.
    """
    banks = {size: bank for bank, size in BANK_SIZES.items()}
    return all(
        len(value) in banks and measures_nothing(value, banks[len(value)]) for value in values.values()
    )
