"""Exchange keys with their devices and policies, as they were read a moment ago.

Most of an unlock's reading is for rows that have not changed since the request before.  Here they are kept, each
with its reading (:class:`~tang_attest.ports.decisions.Reading`).

Rules of this module:

* Rows get here with a valid seal only, straight from a query.
* An answer from here may be late.  A challenge compares the reading in its query, and a decision under its locks;
  nothing is permitted, and nothing refused, by rows that changed before.
* No answer is older than :data:`LASTS_S`: that limits an attacker who holds the version back in the database.
* A key whose policy makes an unlock wait for an operator, or is being changed by a rollout, is not recalled for an
  appraisal: it depends on more than the reading.  Signers, their versions and their statements are in the policy's row.
* Memory is bounded by :data:`KEYS` and :data:`STATES`.  Devices of one policy share it here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from tang_attest.ports.decisions import BoundKey, PolicyPcrs, Reading
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.store.records.keys import Kept

#: Seconds for which an answer is kept.
LASTS_S: Final = 60.0
#: Keys of one process, and reference states in all of their policies.
KEYS: Final = 2048
STATES: Final = 16384


class _Key(NamedTuple):
    key: EncryptedKey
    device: Device
    reading: Reading
    read_at: float
    appraisable: bool


class RecalledKeys:
    """The keys that were read last, by kid; *now* is in monotonic seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._keys: OrderedDict[str, _Key] = OrderedDict()
        #: By name, each with the version of the registry that it was read at.
        self._policies: OrderedDict[str, tuple[int, ReferencePolicy]] = OrderedDict()
        self._states = 0

    def keep(self, bound: BoundKey, reading: Reading) -> None:
        """Keep *bound*, which was read now."""
        if bound.device is None or bound.policy is None:
            return
        kid, policy = bound.key.kid, bound.policy
        self._keep_policy(policy, reading.registry)
        appraisable = bound.rollout is None and not policy.conditions.may_delay
        self._keys[kid] = _Key(bound.key, bound.device, reading, self._now(), appraisable)
        self._keys.move_to_end(kid)
        if len(self._keys) > KEYS:
            self._keys.popitem(last=False)

    def forget(self, kid: str) -> None:
        """Keep nothing of *kid*."""
        self._keys.pop(kid, None)

    def recall(self, kid: str) -> BoundKey | None:
        """Return the key for an appraisal, or ``None`` when it has to be read."""
        found = self._find(kid)
        if found is None or not found[0].appraisable:
            return None
        kept, policy = found
        return BoundKey(kept.key, kept.device, policy, reading=kept.reading)

    def kept(self, kid: str) -> Kept | None:
        """Return what a challenge for *kid* needs, or ``None`` when it has to be read."""
        found = self._find(kid)
        if found is None:
            return None
        kept, policy = found
        return Kept(kept.device.id, PolicyPcrs(policy.selection, policy.cap_pcr), kept.reading)

    def _find(self, kid: str) -> tuple[_Key, ReferencePolicy] | None:
        kept = self._keys.get(kid)
        if kept is None or not 0 <= self._now() - kept.read_at < LASTS_S:
            return None
        version, policy = self._policies.get(kept.device.policy, (None, None))
        if policy is None or version != kept.reading.registry:
            return None
        return kept, policy

    def _keep_policy(self, policy: ReferencePolicy, version: int) -> None:
        known = self._policies.get(policy.name)
        if known is not None and known[0] == version:
            self._policies.move_to_end(policy.name)
            return
        if known is not None:
            self._drop(policy.name)
        self._policies[policy.name] = version, policy
        self._states += len(policy.states)
        while self._states > STATES or len(self._policies) > KEYS:
            self._drop(next(iter(self._policies)))

    def _drop(self, name: str) -> None:
        self._states -= len(self._policies.pop(name)[1].states)
