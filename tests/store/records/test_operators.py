"""Operators in the database: what is done once is done once, and what is forgotten is missed nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta

import pytest

from tang_attest.errors import TangAttestError
from tang_attest.ports.claims import ActClaim
from tang_attest.ports.operators import ActRequest, OperatorRole, Passkey, StoredApproval, StoredSession
from tang_attest.store import SqlStore, check_rows
from tests.fakes import ROW_KEY
from tests.store.samples import NOW, digest, entry
from tests.store.tampering import fill_operators, link

CLAIM = ActClaim(
    request="request",
    operator="alice",
    credential_id=b"id",
    sign_count=0,
    roles=frozenset({"approver", "admin"}),
    at=NOW,
)


async def code(call: Awaitable[object]) -> str:
    """The code of its error, or ``ok``."""
    try:
        await call
    except TangAttestError as error:
        return error.code
    return "ok"


def session(number: int, *, days: int = 0) -> StoredSession:
    at = NOW + timedelta(days=days)
    return StoredSession(
        digest=digest(f"session {number}"),
        operator="alice",
        challenge=digest(f"challenge {number}"),
        created_at=at,
        used_at=at,
    )


async def test_an_act_is_claimed_once(store: SqlStore) -> None:
    """By one of several transactions; the others change nothing, not even the record."""
    await fill_operators(store)
    before = len(await store.audit.list_audit())
    codes = await asyncio.gather(*(code(store.audit.append(entry("act", claim=CLAIM))) for _ in range(5)))
    assert sorted(codes) == ["act-used"] * 4 + ["ok"]
    assert len(await store.audit.list_audit()) == before + 1


async def test_a_claim_undoes_its_act(store: SqlStore) -> None:
    """The change that comes with a claim that fails is not made."""
    await fill_operators(store)
    lost = entry("operator role", claim=replace(CLAIM, roles=frozenset({"admin"})))
    assert await code(store.operators.set_operator_role("alice", OperatorRole.VIEWER, lost)) == "role-missing"
    assert (await store.operators.get_operator("alice")).role is OperatorRole.APPROVER
    for claim, expected in (
        (replace(CLAIM, request="other"), "act-used"),
        (replace(CLAIM, operator="bob"), "role-missing"),
        (replace(CLAIM, credential_id=b"other"), "passkey-unknown"),
        (replace(CLAIM, completes="other"), "act-changed"),
    ):
        assert await code(store.audit.append(entry("act", claim=claim))) == expected
    assert await code(store.audit.append(entry("act", claim=CLAIM))) == "ok"


async def test_a_counter_rises(store: SqlStore) -> None:
    """One that stays or falls is refused under the row's lock; of two with the same count one counts."""
    await fill_operators(store)
    calls = [store.operators.add_session(session(n), b"id", 5, entry()) for n in (1, 2)]
    assert sorted(await asyncio.gather(*map(code, calls))) == ["ok", "passkey-invalid"]
    assert await code(store.operators.add_session(session(3), b"id", 0, entry())) == "passkey-invalid"
    assert await code(store.operators.add_session(session(3), b"id", 6, entry())) == "ok"


async def test_a_challenge_opens_one_session(store: SqlStore) -> None:
    """Of several workers one wins."""
    await fill_operators(store)
    same = [replace(session(n), challenge=digest("one")) for n in range(3)]
    calls = [store.operators.add_session(each, b"id", 0, entry()) for each in same]
    assert sorted(await asyncio.gather(*map(code, calls))) == ["ok", "passkey-invalid", "passkey-invalid"]


async def test_a_link_registers_one_passkey(store: SqlStore) -> None:
    """Of several browsers one wins; a credential belongs to one operator."""
    await fill_operators(store)
    await store.operators.reset_operator("alice", link("new"), entry())
    keys = [
        Passkey(credential_id=bytes([n]), operator="alice", public_key=b"k", sign_count=0, created_at=NOW)
        for n in range(3)
    ]
    calls = [store.operators.add_passkey(digest("new"), key, entry()) for key in keys]
    assert sorted(await asyncio.gather(*map(code, calls))) == ["link-used", "link-used", "ok"]
    await store.operators.reset_operator("alice", link("newer"), entry())
    again = Passkey(credential_id=b"id", operator="alice", public_key=b"k", sign_count=0, created_at=NOW)
    assert await code(store.operators.add_passkey(digest("newer"), again, entry())) == "passkey-invalid"
    assert await store.operators.find_link(digest("newer")) == link("newer"), "it is still good"


async def test_a_pending_approval_is_replaced_once(store: SqlStore) -> None:
    """Two operators sign at once: one signature is added, the other operator looks again."""
    await fill_operators(store)
    (known,) = await store.signed_acts.list_approvals()
    new: list[StoredApproval] = [
        replace(known, number=name, signatures=[*known.signatures, {"operator": name}])
        for name in ("bob", "carol")
    ]
    calls = [store.signed_acts.save_approval(each, known, entry()) for each in new]
    assert sorted(await asyncio.gather(*map(code, calls))) == ["act-changed", "ok"]
    assert len(await store.signed_acts.list_approvals()) == 1


async def test_what_is_forgotten_is_missed_nowhere(url: str, store: SqlStore) -> None:
    """Old sessions and requests go, and ``audit verify`` takes no row for removed by somebody else."""
    await fill_operators(store)
    await store.audit.append(entry("act", claim=CLAIM))
    await store.operators.add_session(session(1, days=3), b"id", 0, entry())
    assert len(await store.operators.list_sessions()) == 1
    later = NOW + timedelta(days=3)
    for number in ("second", "third"):
        request = ActRequest(
            number=number, operator="alice", session=b"s", act={}, text="t", created_at=later
        )
        await store.signed_acts.add_request(request)
    await store.audit.append(entry("act", claim=replace(CLAIM, request="second", at=later)))
    assert await store.signed_acts.find_request("request") is None
    await store.signed_acts.withdraw_approval("approval", entry())
    await store.operators.end_sessions("alice", entry())
    await store.operators.remove_operator("alice", entry())
    assert (await check_rows(url, ROW_KEY)).findings == ()


@pytest.mark.parametrize("count", [0, 7])
async def test_a_revoked_passkey_opens_nothing(store: SqlStore, count: int) -> None:
    """With any count."""
    await fill_operators(store)
    await store.operators.remove_operator("alice", entry())
    call = store.operators.add_session(session(1), b"id", count, entry())
    assert await code(call) == "passkey-unknown"
    assert len(await store.operators.list_passkeys()) == 1
