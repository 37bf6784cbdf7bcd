"""The refused boot that an approval without a number means: there has to be exactly one.

Otherwise a boot between the operator's look and the approval, such as an attacker's, would be approved in
place of the one that the operator saw, for each machine of the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.machines import Device
from tang_attest.ports.policies import Observation
from tang_attest.protocol.quote import advance

#: The most observations that a sentence names.
_NAMED: Final = 5


def choose(device: Device, newest_first: Sequence[Observation], cap_pcr: int, *, capped: bool) -> Observation:
    """Return the newest of *newest_first*, when no other can be meant.

    Evidence from after the cap is no boot; it counts only if there is nothing else, or when *capped* evidence
    is asked for.  Raises ``observation-missing``, and ``observation-ambiguous`` when the boots that were
    refused since the last permitted one differ, or when there are only older ones.
    """
    if not newest_first:
        raise NotFound("observation-missing", f"There is no observation of '{device.name}'.")
    boots = [seen for seen in newest_first if capped or not any(seen.snapshot.values.get(cap_pcr, b""))]
    recent = [seen for seen in boots or newest_first if _is_recent(device, seen)]
    if not recent:
        recent = [seen for seen in newest_first if _is_recent(device, seen)]
    if not recent:
        sentence = (
            f"Nothing of '{device.name}' was refused since it was last permitted; "
            f"the newest before that is observation {newest_first[0].id}."
        )
        raise Conflict("observation-ambiguous", sentence)
    if len(different := _different(recent)) > 1:
        sentence = (
            f"{len(different)} different boots of '{device.name}' were refused since it was last permitted: "
            f"observations {_listed(different)}."
        )
        raise Conflict("observation-ambiguous", sentence)
    return recent[0]


def _is_recent(device: Device, seen: Observation) -> bool:
    """Return True if *seen* is of a boot after the last permitted one, by the TPM's counter; within one boot,
    by the time.
    """
    if device.opened_reset_count is None:
        return True
    resets = advance(device.opened_reset_count, seen.reset_count)
    if resets == 0:
        permitted_at = device.standing.verified_at
        return permitted_at is None or seen.at >= permitted_at
    return resets > 0


def _different(newest_first: Iterable[Observation]) -> list[Observation]:
    """Return the newest of each group of equal observations, in their order."""
    kept: dict[object, Observation] = {}
    for seen in newest_first:
        quoted = seen.snapshot
        kept.setdefault((quoted.selection, tuple(sorted(quoted.values.items()))), seen)
    return list(kept.values())


def _listed(different: Sequence[Observation]) -> str:
    names = [f"{seen.id} ({seen.at:%Y-%m-%d %H:%M:%S} UTC)" for seen in different]
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return f"{', '.join(names[:-1])} and {names[-1]}"
