"""Tokens of the admin API, whatever database is under them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.admin import AdminToken, Scope
from tang_attest.ports.decisions import Snapshot
from tang_attest.store import SqlStore
from tests.store.samples import NOW, SELECTION, decision, digest, enrollment, entry, policy, token, values


def admin_token(name: str = "ci", **fields: Any) -> AdminToken:
    known: dict[str, Any] = {
        "digest": digest(name),
        "scopes": (Scope.READ, Scope.STAGE),
        "policies": None,
        "created_at": NOW,
        "created_by": "operator:test",
        "expires_at": NOW + timedelta(days=90),
    }
    return AdminToken(name=name, **(known | fields))


async def test_a_token_comes_back_as_it_went_in(store: SqlStore) -> None:
    """Limited or not, by its digest, and in the list, newest first."""
    await store.policies.add_policy(policy("web"), entry())
    plain, limited = admin_token(), admin_token("b", policies=("web",), created_at=NOW + timedelta(hours=1))
    for each in (plain, limited):
        await store.admin_tokens.add_admin_token(each, entry("admin-token create"))
        assert await store.admin_tokens.find_admin_token(each.digest) == each
    assert await store.admin_tokens.list_admin_tokens() == [limited, plain]
    assert await store.admin_tokens.find_admin_token(digest("another")) is None


async def test_a_name_is_never_used_again(store: SqlStore) -> None:
    """The audit record names tokens: a second "ci" would blur who did what.  A refusal leaves no trace."""
    await store.admin_tokens.add_admin_token(admin_token(), entry())
    await store.admin_tokens.revoke_admin_token("ci", entry())
    with pytest.raises(Conflict) as taken:
        await store.admin_tokens.add_admin_token(admin_token(digest=digest("other")), entry("second"))
    assert taken.value.code == "name-taken"
    assert await store.admin_tokens.find_admin_token(digest("other")) is None
    assert "second" not in {row.event for _, row in await store.audit.list_audit()}


async def test_a_limit_names_policies_that_exist(store: SqlStore) -> None:
    """A misspelled policy is told at once, not when the pipeline runs."""
    with pytest.raises(NotFound, match="no policy 'wbe'"):
        await store.admin_tokens.add_admin_token(admin_token(policies=("wbe",)), entry())
    assert await store.admin_tokens.list_admin_tokens() == []


async def test_revocation_is_for_good_and_audited(store: SqlStore) -> None:
    """The first one counts; a second finds nothing to revoke."""
    await store.admin_tokens.add_admin_token(admin_token(), entry())
    await store.admin_tokens.add_admin_token(admin_token("other"), entry())
    await store.admin_tokens.revoke_admin_token(
        "ci", entry("admin-token revoke", at=NOW + timedelta(hours=1))
    )
    found = await store.admin_tokens.find_admin_token(digest("ci"))
    assert found == admin_token(revoked_at=NOW + timedelta(hours=1))
    assert await store.admin_tokens.find_admin_token(digest("other")) == admin_token("other")
    assert (await store.audit.list_audit(limit=1))[0][1].event == "admin-token revoke"
    for name in ("ci", "never"):
        with pytest.raises(NotFound, match=f"no admin token '{name}' that is not revoked"):
            await store.admin_tokens.revoke_admin_token(name, entry())


async def test_pages(store: SqlStore) -> None:
    """*before* goes on where a page ended, for the audit record and for observations."""
    await store.enrollment.add_token(token(), entry("first"))
    device = await store.enrollment.enroll(enrollment())
    for number in range(3):
        observed = Snapshot(SELECTION, values(f"boot {number}"))
        await store.decisions.decide(decision(device.id, f"n{number}", number + 1, observation=observed))
    newest, *others = await store.policies.list_observations()
    assert await store.policies.list_observations(before=newest.id) == others
    assert await store.policies.list_observations("pi-b", 1, newest.id) == others[:1]
    rows = await store.audit.list_audit()
    assert await store.audit.list_audit(before=rows[0][0]) == rows[1:]
    assert await store.audit.list_audit(limit=2, before=rows[1][0]) == rows[2:4]


async def test_observations_under_policies(store: SqlStore) -> None:
    """A token for one policy sees the observations of its devices, and no others."""
    for name in ("pi-a", "pi-b"):
        await store.enrollment.add_token(token(name), entry())
        device = await store.enrollment.enroll(enrollment(name, name))
        observed = Snapshot(SELECTION, values("odd"))
        await store.decisions.decide(decision(device.id, name, 1, observation=observed))
    assert [seen.device for seen in await store.policies.list_observations()] == ["pi-b", "pi-a"]
    assert [seen.device for seen in await store.policies.list_observations(policies={"pi-a"})] == ["pi-a"]
    assert await store.policies.list_observations("pi-b", policies={"pi-a"}) == []
    assert await store.policies.list_observations(policies=()) == []
