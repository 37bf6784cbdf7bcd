"""Operators and their signatures in the life of an installation: another kek, another database, none at all."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tang_attest import store as stores
from tang_attest.config import Settings
from tang_attest.errors import Unavailable
from tang_attest.ports.admin import Scope
from tang_attest.server import databases
from tang_attest.server.checkup import check_record
from tang_attest.server.compose import World as Outside
from tang_attest.server.compose import opened
from tang_attest.server.console.services import console_services
from tang_attest.server.rekeying import rotate_secret
from tang_attest.service.operators.acts import ApproveBoots
from tests.attester import Attester
from tests.fakes import RealRandomness
from tests.server import Server
from tests.service.operators.conftest import Console, code_of
from tests.service.operators.test_signed_acts import APPROVAL, Signer, require
from tests.service.policies.test_approve import World
from tests.web.admin.client import Admin


@asynccontextmanager
async def _silent(_step: str) -> AsyncIterator[Callable[[int, int], None]]:
    yield lambda _done, _all: None


async def whole(server: Server, settings: Settings, alice: Signer) -> None:
    """Another process has the operator, her passkey and what she signed; she signs in there."""
    outside = Outside(clock=server.clock, random=RealRandomness(), operator="tester")
    async with opened(settings, outside) as installation:
        check = await check_record(installation, lambda _done, _all: None, None)
        codes = [reason.code for reason in check.reasons if reason.code != "audit-unsealed"]
        assert (check.signed, codes) == (1, [])
        sign_in = console_services(installation).sign_in
        _, session = await sign_in.sign_in(alice.passkey.get(await sign_in.assertion_options()))
        assert session.name == "alice"


async def test_a_new_kek_keeps_operators_and_signatures(world: World, console: Console) -> None:
    """Rows are sealed again; the signatures need no key of the server."""
    alice = await Signer.enter(console, "alice")
    await alice.sign(APPROVAL)
    outside = Outside(clock=world.server.clock, random=RealRandomness(), operator="tester")
    moved = await rotate_secret(world.server.settings, outside)
    assert moved.foreign == 0
    await whole(world.server, world.server.settings, alice)


async def test_a_backup_keeps_operators_and_signatures(
    world: World, console: Console, tmp_path: Path
) -> None:
    """Restored elsewhere, with the kek in it."""
    alice = await Signer.enter(console, "alice")
    await alice.sign(APPROVAL)
    file = io.BytesIO()
    rows = await databases.back_up(world.server.settings, file, world.server.clock, _silent, with_secret=True)
    assert {rows[name] for name in ("operator", "passkey", "operator_session")} == {1}
    file.seek(0)
    settings = world.server.settings.model_copy(update={"state": tmp_path / "restored"})
    await databases.restore(settings, stores.Reader(file), _silent)
    await whole(world.server, settings, alice)


async def test_a_copied_database_keeps_operators_and_signatures(
    world: World, console: Console, empty_postgres_url: str
) -> None:
    """To PostgreSQL."""
    alice = await Signer.enter(console, "alice")
    await alice.sign(APPROVAL)
    await databases.copy(world.server.settings, empty_postgres_url, world.server.clock, _silent)
    settings = world.server.settings.model_copy(update={"database": empty_postgres_url})
    await whole(world.server, settings, alice)


async def test_a_database_that_is_away(
    world: World, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, nothing done; the same signature works when it is back."""
    alice = await Signer.enter(console, "alice")
    request = await console.acts.prepare(alice.session, APPROVAL)
    answer = alice.passkey.get(request.options)
    database = world.server.store._database

    async def away(_work: Any) -> Any:
        raise Unavailable("unavailable", "The database is away.")

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", away)
        assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "unavailable"
        assert await code_of(console.acts.prepare(alice.session, APPROVAL)) == "unavailable"
        patch.setattr(database, "read", away)
        assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "unavailable"
        assert await code_of(console.sign_in.session("x" * 43)) == "unavailable"
    assert await world.count() == 1
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "ok"


async def test_an_admin_token_adds_no_trust_where_operators_are_required(
    world: World, console: Console
) -> None:
    """The answer is 403, with the code, and says where."""
    await require(world, 2)
    text, _ = await world.server.admin_tokens.create("ci", list(Scope), None, timedelta(hours=1))
    admin = Admin(world.server, text)
    answer = await admin.post("/devices/pi-b/approve", {"observation": 1})
    assert (answer.status, answer.code) == (403, "operators-required")
    assert "console_url" in answer.body["action"]
    policy = await world.server.store.policies.get_policy("pi-b")
    label = policy.states[0].label
    await world.server.reference_values.retire("pi-b", label, force=True)
    restored = await admin.move(label, "restore", "pi-b")
    assert (restored.status, restored.code) == (403, "operators-required")
    observed = (await world.server.store.policies.list_observations("pi-b"))[0].snapshot.values
    staged = await admin.stage("x", dict(observed), "pi-b")
    assert (staged.status, staged.code) == (403, "operators-required")
    await world.server.reference_values.create_policy("other", policy.selection, policy.cap_pcr)
    moved = await admin.post("/devices/pi-b/move", {"policy": "other"})
    assert (moved.status, moved.code) == (403, "operators-required")
    assert await world.count() == 1


async def test_boots_that_differ_alike_are_one_act(world: World, console: Console, server: Server) -> None:
    """Two machines under one policy need one state; one signature covers both, and the record verifies."""
    other = Attester()
    other.pcrs = {bank: dict(values) for bank, values in world.values.items()}
    kid = await server.enroll(other, "pi-c", policy="pi-b", record=False)
    other.reset_count += 1
    other.extend(4, b"update")
    assert (await server.unlock(other, kid)).code == "pcr-mismatch"
    alice = await Signer.enter(console, "alice")
    boots = (("pi-b", 1), ("pi-c", 2))
    done = await alice.sign(ApproveBoots(boots=boots))
    assert done.done == "Approved: pi-b, pi-c."
    assert await world.count() == 2
    other.reset_count += 1
    assert (await server.unlock(other, kid)).code == "ok"
    check = await check_record(server.installation, lambda _done, _all: None, None)
    assert (check.signed, [r.code for r in check.reasons if r.code != "audit-unsealed"]) == (1, [])


async def test_one_boot_each_is_one_state_each(world: World, console: Console, server: Server) -> None:
    """``once`` for several machines is once for each; an approval that fails stands beside the others."""
    other = Attester()
    other.pcrs = {bank: dict(values) for bank, values in world.values.items()}
    kid = await server.enroll(other, "pi-c", policy="pi-b", record=False)
    other.reset_count += 1
    other.extend(4, b"update")
    assert (await server.unlock(other, kid)).code == "pcr-mismatch"
    alice = await Signer.enter(console, "alice")
    await alice.sign(ApproveBoots(boots=(("pi-b", 1), ("pi-c", 2)), once=True))
    states = (await server.store.policies.get_policy("pi-b")).states[1:]
    assert [(state.limits.device, state.limits.uses_left) for state in states] == [("pi-b", 1), ("pi-c", 1)]
    check = await check_record(server.installation, lambda _done, _all: None, None)
    assert (check.signed, [r.code for r in check.reasons if r.code != "audit-unsealed"]) == (2, [])
