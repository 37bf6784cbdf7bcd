"""Decisions: the records that an appraisal needs, and those that it writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Protocol

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.rules import RuleSet
from tang_attest.protocol.signed_values.signer import Signers
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.pcr import PcrValues, Selection


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Quoted values of *selection*, and the machine's event log (or nothing)."""

    selection: Selection
    values: PcrValues
    event_log: bytes = b""


@dataclass(frozen=True, slots=True)
class NewEvidence:
    """Evidence of an initrd, the policy's verdict on it, and the grade of its measurements."""

    snapshot: Snapshot
    permitted: bool
    grade: Mapping[str, object] | None = None

    @property
    def digest(self) -> bytes:
        """32 bytes that differ for two boots, unless only the logs of PCRs that were not quoted differ."""
        quoted = self.snapshot
        # 2: the grade covers unmeasured inputs; evidence that was graded before is graded anew.
        head = f"2\n{quoted.selection}\n{bool(quoted.event_log)}\n{self.permitted}\n".encode()
        return hashlib.sha256(head + b"".join([quoted.values[pcr] for pcr in quoted.selection.pcrs])).digest()


@dataclass(frozen=True, slots=True)
class Reading:
    """The moment at which a key, its device and its policy were read: equal numbers mean equal rows.

    ``registry`` is the version of the registry, but for devices.  ``serial`` and ``version`` are of the seal of the
    device's row, and ``evidence`` is the digest of its newest evidence, which no seal covers.
    """

    registry: int
    serial: bytes
    version: int
    evidence: bytes | None


@dataclass(frozen=True, slots=True)
class BoundKey:
    """An exchange key with its device and the device's policy; an open key (plain Tang) has neither.

    ``rollout`` is the policy's that is not over, ``outcome`` the device's outcome under it.  ``reading`` is set if
    the key was recalled: the moment of which everything here is true.
    """

    key: EncryptedKey
    device: Device | None
    policy: ReferencePolicy | None
    rollout: Rollout | None = None
    outcome: RolloutOutcome | None = None
    _: KW_ONLY
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class PolicyPcrs:
    """The PCRs of a policy that a challenge names: those to quote, and the cap."""

    selection: Selection
    cap_pcr: int


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """Outcome of one device under a rollout: ``about`` is the state that permitted, or the code of the
    refusal.
    """

    rollout: Rollout
    outcome: RolloutOutcome
    about: str


@dataclass(frozen=True, slots=True)
class Basis:
    """The basis of a permit beside a reference state and the policy's conditions; compared again when it is
    written.
    """

    rules: RuleSet | None
    rollout: Rollout | None
    labels: tuple[str, ...]
    policy: str
    signers: Signers = field(default_factory=Signers)


@dataclass(frozen=True, slots=True)
class Decision:
    """Everything one appraisal writes, in one transaction.

    * ``nonce_digest``: the SHA-256 of the nonce's text;
    * ``clock``: the clock of the (authentic) quote;
    * ``behind_ms``: the distance by which it may be behind the newest evidence of the same boot, in
      milliseconds.  The quote was compared with the evidence that was accepted before its nonce was made;
    * ``met``: the state that permitted it;
    * ``observation``: a refused quote;
    * ``learned``: the state that an armed learning use made;
    * ``evidence``: the quoted evidence, unless the store has it already;
    * ``rollout``: a new outcome under the rollout of the policy;
    * ``basis``: the basis of a permit;
    * ``reading``: the moment of the rows that were appraised by, if they were recalled;
    * ``replay_in_full``: false if the caller only counts a further use of the nonce, because many refusals
      about the key were written already.
    """

    device_id: int
    nonce_digest: bytes
    nonce_expires_at: datetime
    clock: ClockInfo
    audit: AuditEntry
    _: KW_ONLY
    met: ReferenceState | None = None
    observation: Snapshot | None = None
    learned: ReferenceState | None = None
    evidence: NewEvidence | None = None
    rollout: RolloutResult | None = None
    behind_ms: int = 0
    basis: Basis | None = None
    reading: Reading | None = None
    replay_in_full: bool = True

    @property
    def raises_version(self) -> bool:
        """Return True if it permits a higher version of a signer than any before, by its basis."""
        signed = None if self.met is None else self.met.signed
        return signed is not None and self.basis is not None and self.basis.signers.raises(signed)


class DecisionStore(Protocol):
    """The request path of an unlock: one read, one write."""

    async def find_key(self, kid: str) -> BoundKey | None:
        """Return the exchange key with thumbprint *kid*, fresh from the database; ``None`` when there is
        none.
        """

    def recall_key(self, kid: str) -> BoundKey | None:
        """Return what was read of the exchange key *kid* a moment ago, without asking the database; ``None`` when
        that has to be asked.

        It may have changed: :meth:`decide` compares ``reading`` for a permit, and a refusal has to be looked up
        again with :meth:`find_key`.
        """

    async def find_question(self, kid: str) -> tuple[PolicyPcrs, ClockInfo | None] | None:
        """Return the PCRs and the clock for a challenge about *kid*, both of one moment; ``None`` when there is no
        such key of a device.
        """

    async def find_pcrs(self, kid: str) -> PolicyPcrs | None:
        """Return the PCRs of the policy of the device with exchange key *kid*; ``None`` when there is
        none.
        """

    async def find_clock(self, kid: str) -> ClockInfo | None:
        """Return the clock of the newest evidence of the device with exchange key *kid*; ``None`` when there
        is none.
        """

    async def decide(self, decision: Decision) -> None:
        """Write *decision*.

        These errors leave nothing written, except that ``nonce-used`` writes an audit entry of the second
        use.  For the others the caller writes the audit entry.

        * ``nonce-used``: the nonce was used before.
        * ``clock-backwards``: newer evidence of the device was written meanwhile, and this one is further
          behind than it may be.
        * ``key-unknown``: the device is gone.
        * ``device-suspended``: it was suspended meanwhile (unless the decision is a refusal anyway).
        * ``pcr-mismatch``: the one learning use was taken meanwhile.
        * ``state-retired``, ``state-used-up``: the state that it met does not count any more.
        * ``state-not-rolled-out``: the state counted only by a rollout that was stopped meanwhile.
        * ``approval-required``, ``device-stale``: the policy's conditions ask for an approval now.
        * ``policy-changed``: its ``basis``, or the registry since its ``reading``, is another one now.

        The refusal that passes a rollout's limit stops it here, with an audit entry of the actor ``server``.
        """

    async def prune(self, before: datetime) -> int:
        """Remove nonces that expired before *before*; return their number."""
