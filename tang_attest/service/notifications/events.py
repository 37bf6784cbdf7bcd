"""Events of the audit record that want a person.

Only evidence that a machine's own TPM signed makes an event of it: an unauthenticated client, which knows a ``kid``
from a disk's header, sends nobody a message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tang_attest.errors import ACTIONS
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import NoticeKind, Occurrence
from tang_attest.protocol.passkeys.record import SIGNED, WAITING
from tang_attest.protocol.passkeys.text import read_text
from tang_attest.service.notifications import places
from tang_attest.service.operators.subjects import policies_of

#: Refusals of authentic evidence of a boot, after which the machine waits at its prompt.
_BOOT: Final = frozenset(
    {
        "pcr-mismatch",
        "policy-empty",
        "state-proposed",
        "state-retired",
        "state-expired",
        "state-used-up",
        "state-not-rolled-out",
        "state-learned",
        "tpm-not-reset",
        "log-missing",
        "log-replay-mismatch",
        "rule-failed",
        "uncovered",
        "key-retired",
        "statement-untrusted",
        "statement-out-of-scope",
        "statement-elsewhere",
        "statement-mismatch",
        "statement-early",
        "statement-expired",
        "statement-retired",
        "statement-rolled-back",
    }
)
#: Refusals that end when a person allows the unlock.
_UNLOCK: Final = frozenset({"approval-required", "device-stale"})
#: Members of a reason that differ between machines with the same difference, or are words of machines.
_OWN: Final = frozenset({"sentence", "expected", "device", "line"})


def event_of(number: int, entry: AuditEntry) -> Occurrence | None:
    """Return the event of an audit entry, or ``None`` for one that wants nobody."""
    read = _READERS.get(entry.event)
    return None if read is None else read(number, entry)


def _unlock(_: int, entry: AuditEntry) -> Occurrence | None:
    if entry.verdict != "refused" or entry.device is None or "left_out" in entry.details:
        return None
    if entry.code in _UNLOCK:
        return Occurrence(
            kind=NoticeKind.UNLOCK,
            key=group_key(NoticeKind.UNLOCK, entry.code),
            subject=entry.device,
            at=entry.at,
            sentence=f"The unlock waits for a person ({entry.code}).",
            action=ACTIONS[entry.code],
        )
    if entry.code not in _BOOT:
        return None
    pcrs = [pcr for pcr in _list(entry.details.get("pcrs")) if isinstance(pcr, int)]
    where = f" in PCR {', '.join(map(str, pcrs))}" if pcrs else ""
    return Occurrence(
        kind=NoticeKind.BOOT,
        key=group_key(NoticeKind.BOOT, entry.code, *_difference(entry)),
        subject=entry.device,
        at=entry.at,
        sentence=f"The boot was refused{where} ({entry.code}), and waits at its prompt.",
        action=ACTIONS[entry.code],
    )


def _difference(entry: AuditEntry) -> list[str]:
    """Return what equal boots have in common: for each reason its code, its PCR and the value of that.

    That is what `approve --alike` compares, too.
    """
    found = []
    for reason in _list(entry.details.get("reasons")):
        if isinstance(reason, Mapping):
            shared = {name: value for name, value in reason.items() if name not in _OWN}
            found.append(json.dumps(shared, sort_keys=True, default=str))
    return sorted(found)


def _state_added(_: int, entry: AuditEntry) -> Occurrence | None:
    if entry.details.get("life") != "proposed" or entry.device is None:
        return None
    policy, label = str(entry.details.get("policy")), str(entry.details.get("label"))
    return Occurrence(
        kind=NoticeKind.ANNOUNCEMENT,
        key=group_key(NoticeKind.ANNOUNCEMENT, policy),
        subject=entry.device,
        at=entry.at,
        sentence=f"Announced values of policy '{policy}' wait for an approval.",
        action=f"See them with 'tang-attest policy staged', then run 'tang-attest policy stage {policy} --announced LABEL'.",
        identity=label,
        page=places.of_policy(policy),
    )


def _suspended(number: int, entry: AuditEntry) -> Occurrence | None:
    if entry.device is None:
        return None
    why = f" ({entry.code})" if entry.code != "ok" else ""
    return Occurrence(
        kind=NoticeKind.SUSPENSION,
        key=group_key(NoticeKind.SUSPENSION, entry.actor, entry.code),
        subject=entry.device,
        at=entry.at,
        sentence=f"Suspended by {entry.actor}{why}: the exchange keys answer nobody.",
        action=ACTIONS["device-suspended"],
        identity=str(number),
    )


def _silent(number: int, entry: AuditEntry) -> Occurrence | None:
    if entry.device is None:
        return None
    return Occurrence(
        kind=NoticeKind.SILENCE,
        key=group_key(NoticeKind.SILENCE),
        subject=entry.device,
        at=entry.at,
        sentence="The running system gives no evidence any more.",
        action=ACTIONS["device-unreachable"],
        identity=str(number),
    )


def _stopped(number: int, entry: AuditEntry) -> Occurrence | None:
    policy, rollout = str(entry.details.get("policy")), str(entry.details.get("rollout"))
    why = f": {entry.details.get('why')}" if entry.actor == "server" else f" by {entry.actor}"
    return Occurrence(
        kind=NoticeKind.ROLLOUT,
        key=group_key(NoticeKind.ROLLOUT, policy, rollout, str(number)),
        subject=f"policy {policy}",
        at=entry.at,
        sentence=f"Rollout '{rollout}' was stopped{why}.",
        action=f"See 'tang-attest policy rollout status {policy}' on the server.",
        identity=str(number),
        page=places.of_policy(policy),
    )


def _signed(number: int, entry: AuditEntry) -> Occurrence | None:
    """Return the event of a signature that waits for those of further operators."""
    try:
        text = read_text(str(_list(entry.details[SIGNED])[-1]["text"]))
        page = places.of_subject(text.subject)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    signers = ", ".join(str(name) for name in _list(entry.details.get("signed_by")))
    return Occurrence(
        kind=NoticeKind.APPROVAL,
        key=group_key(NoticeKind.APPROVAL, str(number)),
        subject=", ".join(f"policy {name}" for name in policies_of(text.subject))
        or str(text.subject.get("act")),
        at=entry.at,
        sentence=f"Signed by {signers}; {entry.details.get('needed')} operators have to sign.",
        action="Another operator reviews and signs it in the console, within a day.",
        identity=str(number),
        page=page,
    )


_READERS: Final[Mapping[str, Callable[[int, AuditEntry], Occurrence | None]]] = {
    "unlock": _unlock,
    "policy state add": _state_added,
    "device suspend": _suspended,
    "device silent": _silent,
    "policy rollout stop": _stopped,
    WAITING: _signed,
}


def group_key(kind: NoticeKind, *parts: str) -> str:
    """Return the key of a group: equal parts, equal keys."""
    return f"{kind} {hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
