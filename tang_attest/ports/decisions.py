"""Decisions: what an appraisal needs and writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.rules import RuleSet
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.pcr import PcrValues, Selection


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a machine quoted: the values of *selection*, and the event log it sent (or nothing)."""

    selection: Selection
    values: PcrValues
    event_log: bytes = b""


@dataclass(frozen=True, slots=True)
class NewEvidence:
    """What an initrd quoted, whether the policy permitted it, and the grade of its measurements."""

    snapshot: Snapshot
    permitted: bool
    grade: Mapping[str, object] | None = None

    @property
    def digest(self) -> bytes:
        """32 bytes that tell two boots apart, except for what their logs say of PCRs that were not quoted."""
        quoted = self.snapshot
        # 2: graded with a look at what is not measured; evidence that was graded before is graded anew.
        head = f"2\n{quoted.selection}\n{bool(quoted.event_log)}\n{self.permitted}\n".encode()
        return hashlib.sha256(head + b"".join(quoted.values[pcr] for pcr in quoted.selection.pcrs)).digest()


@dataclass(frozen=True, slots=True)
class BoundKey:
    """An exchange key and whom it serves: a device under its policy, or (open key, plain Tang) anybody.

    ``rollout`` is the policy's that is not over, ``outcome`` how the device fared under it.
    """

    key: EncryptedKey
    device: Device | None
    policy: ReferencePolicy | None
    rollout: Rollout | None = None
    outcome: RolloutOutcome | None = None


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How one device fared under a rollout: ``about`` is the state that permitted, or the code of the refusal."""

    rollout: Rollout
    outcome: RolloutOutcome
    about: str


@dataclass(frozen=True, slots=True)
class Basis:
    """The basis of a permit beside a reference state and the policy's conditions; compared again when it is written."""

    rules: RuleSet | None
    rollout: Rollout | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Everything one appraisal writes, in one transaction.

    ``nonce_digest`` is the SHA-256 of the nonce's text; ``clock`` the clock of the (authentic) quote; ``behind_ms`` is
    how far that may be behind the newest evidence of the same boot: the quote was compared with what was accepted before
    its nonce was made; ``met`` the
    state that permitted it; ``observation`` a refused quote; ``learned`` the state that an armed learning use made;
    ``evidence`` what was quoted, when it is not what the store has of this device already; ``rollout`` what this says
    about the rollout of its policy, when it says something new; ``basis`` what a permit was given by.
    ``replay_in_full`` is false when so many refusals about the key were written that a further use of a nonce is only
    counted, by whoever made this.
    """

    device_id: int
    nonce_digest: bytes
    nonce_expires_at: datetime
    clock: ClockInfo
    audit: AuditEntry
    met: ReferenceState | None = None
    observation: Snapshot | None = None
    learned: ReferenceState | None = None
    evidence: NewEvidence | None = None
    rollout: RolloutResult | None = None
    behind_ms: int = 0
    basis: Basis | None = None
    replay_in_full: bool = True
