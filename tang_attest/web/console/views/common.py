"""Words and lists that several pages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tang_attest.ports.attention import MOST_COUNTED
from tang_attest.protocol.coverage import ENFORCED, BootPart

#: Refusals that an operator lifts by allowing the unlock, not by approving values.
WAITS_FOR_PERSON: Final = frozenset({"approval-required", "device-stale"})


def counted(number: int, one: str, many: str) -> str:
    """Return *number* with its noun; a number that was not counted further has a plus."""
    if number > MOST_COUNTED:
        return f"{MOST_COUNTED:,}+ {many}"
    return f"{number:,} {one if number == 1 else many}"


def listed(words: Sequence[str], most: int = 3) -> str:
    """Return *words* in a sentence; of a long list the first ones and a number."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def pcrs(numbers: Sequence[int]) -> str:
    """Return ``PCR 4 and PCR 9``."""
    return listed([f"PCR {number}" for number in numbers], 24)


def parts_to_accept() -> list[tuple[str, str]]:
    """Return the parts of a boot that an approval may accept uncovered: value and name."""
    return [(part.value, _name(part)) for part in BootPart if part in ENFORCED]


def _name(part: BootPart) -> str:
    return part.value.replace("-", " ")
