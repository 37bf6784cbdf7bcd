"""Records to store: every field set, nothing random, different for each number."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Decision
from tang_attest.ports.enrollment import Enrollment, RegisteredEk, Token
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import NewDevice
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.pcr import Selection

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
SELECTION = Selection("sha256", (0, 4, 7))


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def values(text: str = "state") -> dict[int, bytes]:
    return {pcr: digest(f"{text} {pcr}") for pcr in SELECTION.pcrs}


def state(label: str = "recorded", origin: str = "recorded") -> ReferenceState:
    return ReferenceState(label, values(label), origin)


def policy(name: str = "policy", *states: ReferenceState) -> ReferencePolicy:
    return ReferencePolicy(name, SELECTION, 15, states or (state(),))


def device(name: str = "pi-b", *, ak: str | None = None, ek: str | None = None) -> NewDevice:
    return NewDevice(
        name=name,
        ak_public=b"public " + (ak or name).encode(),
        ak_name=digest(f"name {ak or name}"),
        ak_spki=b"ak " + (ak or name).encode(),
        ak_scheme="RSASSA",
        ak_hash="sha256",
        ek_spki=b"ek " + (ek or name).encode(),
        ek_certificate=b"certificate",
        ek_verified=True,
        ek_issuer="CN=Vendor",
        origin="enrolled",
        enrolled_at=NOW,
    )


def key(kid: str = "kid-pi-b", use: str = "exchange", *, minutes: int = 0) -> EncryptedKey:
    return EncryptedKey(
        kid=kid,
        use=use,
        curve="P-521",
        public={"crv": "P-521", "kty": "EC", "x": "x", "y": "y"},
        jwe=".".join(digest(f"{kid} {part}").hex() * 2 for part in range(5)),
        created_at=NOW + timedelta(minutes=minutes),
    )


def entry(event: str = "change", **fields: object) -> AuditEntry:
    known: dict[str, Any] = {"at": NOW, "actor": "operator:test", "verdict": "done"}
    return AuditEntry(event=event, **(known | fields))


def clock(ticks: int, reset_count: int = 1, restart_count: int = 0) -> ClockInfo:
    return ClockInfo(ticks, reset_count, restart_count, True)


def decision(device_id: int, nonce: str, ticks: int, **fields: object) -> Decision:
    known: dict[str, Any] = {
        "device_id": device_id,
        "nonce_digest": digest(nonce),
        "nonce_expires_at": NOW + timedelta(minutes=2),
        "clock": clock(ticks),
        "audit": entry("unlock", verdict="permitted", actor="device:pi-b", device="pi-b", request_id=nonce),
    }
    return Decision(**(known | fields))


def token(text: str = "token", **fields: object) -> Token:
    known: dict[str, Any] = {
        "digest": digest(text),
        "created_at": NOW,
        "created_by": "operator:test",
        "expires_at": NOW + timedelta(hours=1),
        "name": None,
        "policy": None,
        "record": True,
        "selection": SELECTION,
        "cap_pcr": 15,
        "allow_unverified_ek": False,
        "force": False,
        "learn_for_s": 0,
    }
    return Token(**(known | fields))


def registered_ek(name: str = "pi-b", **fields: object) -> RegisteredEk:
    known: dict[str, Any] = {
        "ek_sha256": digest(f"ek {name}"),
        "name": name,
        "policy": "policy",
        "added_at": NOW,
        "added_by": "operator:test",
    }
    return RegisteredEk(**(known | fields))


def enrollment(name: str = "pi-b", text: str = "token", **fields: object) -> Enrollment:
    known: dict[str, Any] = {
        "token_digest": digest(text),
        "device": device(name),
        "key": key(f"kid-{name}"),
        "audit": entry("enroll", device=name, actor=f"device:{name}"),
    }
    if "policy" not in fields:
        known["new_policy"] = policy(name)
    return Enrollment(**(known | fields))
