"""IMA: the measurement list of a running machine, read part by part; each entry is appraised once a boot.

Rules of this module:

* The progress on a list is written before the verdict, so a crash between them loses no finding.
* Two rounds at once may overwrite each other's progress.  Each is consistent by itself: its value of PCR 10
  is that of its offset, and the same entries lead to the same findings again.
* A part that cannot be read, or does not lead to PCR 10, may have been changed on the way: the list is read
  from its beginning.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.ports.machines import Device
from tang_attest.ports.rounds import RoundStore
from tang_attest.protocol.ima import ImaProgress, Requirement, advance, parse_requirement, reasons
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.quote import Evidence, VerifiedQuote
from tang_attest.protocol.values.pcr import Selection

#: The most requirements that are kept parsed: each may have thousands of files.
_READY: Final = 16
#: The PCRs of a boot aggregate, and IMA's own.
_QUOTED: Final = frozenset(range(11))


def with_ima(selection: Selection) -> Selection:
    """Return *selection* with the PCRs that the verification of a list needs: 0 to 10."""
    return Selection(selection.bank, tuple(sorted(_QUOTED.union(selection.pcrs))))


class ImaLists:
    """Reads the measurement lists of machines whose policy has a requirement on them."""

    def __init__(self, store: RoundStore) -> None:
        self._store = store
        self._ready: dict[str, Requirement] = {}

    async def offset(self, device: Device) -> int:
        """Return the offset of the part that *device* has to send next, in bytes."""
        before = await self._store.ima_progress(device.id)
        return 0 if before is None else ImaProgress.from_json(before).offset

    async def judge(
        self, policy: ReferencePolicy, device: Device, quote: VerifiedQuote, evidence: Evidence
    ) -> tuple[Reason, ...]:
        """Return the reasons to refuse *device* for its measurements; empty is good.

        *policy* has a requirement, and *quote* is over :func:`with_ima`.  Raises ``ima-missing``,
        ``ima-incomplete`` (there is more of the list), ``ima-mismatch`` and ``ima-malformed``; none of them
        is a verdict on the machine.
        """
        requirement = await self._required(policy)
        if evidence.ima is None:
            raise Refused("ima-missing", f"'{device.name}' sent no list of IMA's measurements.")
        kept = await self._store.ima_progress(device.id)
        before = ImaProgress.begin(quote.clock.reset_count, requirement, quote.selection.bank)
        if kept is not None and (known := ImaProgress.from_json(kept)).goes_on(before):
            before = known
        if evidence.ima_offset != before.offset:
            await self._store.keep_ima_progress(device.id, before.as_json())
            raise Refused("ima-incomplete", f"The list has to be sent from byte {before.offset} on.")
        try:
            after, complete = await asyncio.to_thread(
                advance, before, evidence.ima, quote.values, requirement
            )
        except (Malformed, Refused):
            await self._store.keep_ima_progress(device.id, None)
            raise
        if kept is None or after.as_json() != kept:
            await self._store.keep_ima_progress(device.id, after.as_json())
        if not complete:
            raise Refused("ima-incomplete", f"The list goes on after entry {after.count}.")
        return reasons(after, requirement)

    async def _required(self, policy: ReferencePolicy) -> Requirement:
        digest = policy.conditions.ima or ""
        if digest not in self._ready:
            stored = await self._store.find_ima_requirement(digest)
            if stored is None:  # it was changed since the policy was read
                raise Refused(
                    "ima-incomplete", f"What policy '{policy.name}' requires was changed meanwhile."
                )
            requirement = await asyncio.to_thread(parse_requirement, stored.document)
            while len(self._ready) >= _READY:
                del self._ready[next(iter(self._ready))]
            self._ready[digest] = requirement
        return self._ready[digest]
