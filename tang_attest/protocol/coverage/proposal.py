"""Boot -> Proposal: the PCR selection that fits a boot chain, and the reason for each PCR that is chosen or
left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tang_attest.protocol.coverage.boot import Boot, BootPart, Chain, preferred
from tang_attest.protocol.coverage.parts import ENFORCED, spell
from tang_attest.protocol.values.pcr import Selection

_FIRMWARE_PCRS: Final = (0, 2, 4, 7)
_ADDED_PCRS: Final = (12, 13)
"""systemd-stub: what replaces or extends the command line, credentials, system extensions."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """``selection`` and sentences without a full stop that say why; ``missing`` are parts that no selection
    covers.
    """

    selection: Selection
    reasons: tuple[str, ...]
    missing: tuple[BootPart, ...]

    def as_json(self) -> dict[str, object]:
        """``{"selection": "sha256:0,2,...", "reasons": [...], "missing": ["initrd"]}``."""
        return {
            "selection": str(self.selection),
            "reasons": list(self.reasons),
            "missing": [part.value for part in self.missing],
        }


def propose(boot: Boot, bank: str, cap_pcr: int) -> Proposal | None:
    """Return the selection for machines that boot as *boot* does, with *cap_pcr*; None for an unknown chain.

    It has the PCRs of the firmware that hold more than constants, and for each of :data:`ENFORCED` one PCR
    that covers it.  Of several, it prefers the one that the chain itself measures: a unified kernel image
    needs PCR 11 and not 9.
    """
    if boot.chain is Chain.UNKNOWN:
        return None
    chosen = {pcr: "firmware, boot loader and Secure Boot" for pcr in _FIRMWARE_PCRS if _worth(boot, pcr)}
    for part in ENFORCED:
        if part not in boot.hollow and (pcrs := boot.measured.get(part)):
            pcr = preferred(boot.chain, tuple(pcrs))
            words = [] if pcr not in chosen else [chosen[pcr]]
            chosen[pcr] = ", ".join([*words, part.words])
    for pcr in _ADDED_PCRS:
        if pcr in boot.used:
            chosen.setdefault(pcr, "what replaces or extends the image")
    chosen[cap_pcr] = "the cap"
    missing = tuple(part for part in ENFORCED if part in boot.hollow or part not in boot.measured)
    selection = Selection(bank, tuple(sorted(chosen)))
    return Proposal(selection, _reasons(boot, chosen, missing), missing)


def _worth(boot: Boot, pcr: int) -> bool:
    """EFI firmware fills the PCRs of its own; U-Boot without EFI leaves separators in most of them."""
    return boot.chain is not Chain.UBOOT or pcr in boot.used


def _reasons(boot: Boot, chosen: dict[int, str], missing: tuple[BootPart, ...]) -> tuple[str, ...]:
    reasons = [f"the machine boots by {boot.chain.value}"]
    for part in ENFORCED:
        if part not in missing:
            pcr = next(pcr for pcr in boot.measured[part] if pcr in chosen and part.words in chosen[pcr])
            reasons.append(f"PCR {pcr}: {boot.measured[part][pcr]} measures the {part.words} there")
    if boot.chain is Chain.UKI and 9 not in chosen and 11 in chosen:
        reasons.append("PCR 9 is left out: PCR 11 has each part of the image")
    if idle := tuple(pcr for pcr in _FIRMWARE_PCRS if pcr not in chosen):
        reasons.append(f"{spell(idle)} left out: separators only")
    if boot.chain is Chain.UBOOT and 1 in boot.measured.get(BootPart.DEVICE_TREE, {}):
        reasons.append(
            "PCR 1 has the device tree too: where it changes with each boot, PCR 1 does not repeat"
        )
    reasons += [
        f"no selection covers the {part.words}: {boot.hollow.get(part, 'nobody measured it')}"
        for part in missing
    ]
    return tuple(reasons)
