"""Signers of a policy in the store: changed under a lock, raised by decisions, and sealed with the policy."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound, Refused, TangAttestError
from tang_attest.ports.decisions import Basis, BoundKey, Decision
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.signed_values.signer import Signer, Signers
from tang_attest.store import SqlStore
from tang_attest.store.database import tables, versioned
from tests.protocol.signed_values import signing
from tests.store.samples import NOW, decision, device, digest, entry, key, policy, state


def signer(**fields: Any) -> Signer:
    """A signer of PCR 4."""
    made, _ = signing.pipeline(**({"pcrs": (4,)} | fields))
    return made


def signed(by: Signer, version: int, label: str = "web/1") -> SignedState:
    """A statement of it, verified."""
    return SignedState(
        signer=by.name, key=by.key_id, label=label, version=version, values={4: digest("signed")}
    )


async def registry(store: SqlStore, signers: Signers) -> int:
    """A device under a policy with *signers*; its id."""
    await store.policies.add_policy(replace(policy(), signers=signers), entry())
    return (await store.devices.add_device(device(), "policy", key("kid"), entry())).id


def permit(device_id: int, nonce: str, ticks: int, signed_by: SignedState, signers: Signers) -> Decision:
    """A decision that rests on *signers*."""
    met = replace(state(), signed=signed_by)
    basis = Basis(None, None, (), "policy", signers)
    return decision(device_id, nonce, ticks, met=met, basis=basis)


async def current(store: SqlStore) -> Signers:
    """The signers of the policy."""
    return (await store.policies.get_policy("policy")).signers


async def test_a_policy_keeps_its_signers(store: SqlStore) -> None:
    """Added, changed, read with the policy and with a key of the request path."""
    first = Signers((signer(),), ("old",), ("text",))
    await registry(store, first)
    assert await current(store) == first
    found = await store.decisions.find_key("kid")
    assert found is not None
    assert found.policy is not None
    assert found.policy.signers == first
    await store.policies.change_signers("policy", lambda signers: signers.with_retired("new"), entry())
    assert (await current(store)).retired == ("old", "new")
    await store.policies.change_signers("policy", lambda _: Signers(), entry())
    assert await current(store) == Signers()
    with pytest.raises(NotFound):
        await store.policies.change_signers("other", lambda signers: signers, entry())


async def test_a_change_that_raises_changes_nothing(store: SqlStore) -> None:
    """Not even the audit record."""
    await registry(store, Signers((signer(),)))
    before = await store.audit.list_audit()

    def refuse(_: Signers) -> Signers:
        raise Refused("statement-retired", "No.")

    with pytest.raises(Refused):
        await store.policies.change_signers("policy", refuse, entry())
    assert await store.audit.list_audit() == before


async def test_two_changes_at_once_both_happen(store: SqlStore) -> None:
    """Each is made of what the other left."""
    await registry(store, Signers((signer(),)))

    async def retire(label: str) -> None:
        await store.policies.change_signers("policy", lambda known: known.with_retired(label), entry())

    await asyncio.gather(*map(retire, "abc"))
    assert sorted((await current(store)).retired) == ["a", "b", "c"]


async def test_a_permit_raises_the_version_and_is_remembered(store: SqlStore) -> None:
    """Written with the decision; a permit by plain values forgets it."""
    by = signer()
    device_id = await registry(store, Signers((by,)))
    vouched = signed(by, 7)
    await store.decisions.decide(permit(device_id, "n1", 1, vouched, Signers((by,))))
    raised = await current(store)
    assert raised == Signers((by,)).raised(vouched, NOW)
    assert (await store.devices.get_device("pi-b")).signed == vouched
    assert (await store.devices.get_device("pi-b")).last_state == "recorded"
    # The same version again, and a lower one where that is allowed, change nothing.
    await store.decisions.decide(permit(device_id, "n2", 2, vouched, raised))
    await store.decisions.decide(permit(device_id, "n3", 3, signed(by, 6), raised))
    assert await current(store) == raised
    plain = decision(device_id, "n4", 4, met=state(), basis=Basis(None, None, (), "policy", raised))
    await store.decisions.decide(plain)
    assert (await store.devices.get_device("pi-b")).signed is None


@pytest.mark.parametrize(
    "change",
    [
        lambda signers: signers.without("pipeline"),
        lambda signers: signers.with_retired("web"),
        lambda signers: signers.raised(signed(signers.signers[0], 9), NOW),
        lambda signers: replace(signers, signers=(replace(signers.signers[0], pcrs=(0,)),)),
        lambda signers: replace(signers, statements=("another",)),
    ],
)
async def test_a_decision_whose_signers_changed_meanwhile_is_made_again(store: SqlStore, change: Any) -> None:
    """Dropped, retired, raised or narrowed between the appraisal and the transaction: nothing is written."""
    by = signer(no_rollback=True)
    device_id = await registry(store, Signers((by,)))
    decided = permit(device_id, "n", 1, signed(by, 7), Signers((by,)))
    await store.policies.change_signers("policy", change, entry())
    with pytest.raises(Conflict) as error:
        await store.decisions.decide(decided)
    assert error.value.code == "policy-changed"
    assert (await store.devices.get_device("pi-b")).signed is None


async def test_permits_of_one_batch_see_each_other(store: SqlStore) -> None:
    """The first raises the version, the second was judged by an older one; other policies are not concerned."""
    by = signer(no_rollback=True)
    signers = Signers((by,))
    device_id = await registry(store, signers)
    await store.policies.add_policy(policy("other"), entry())
    other = (await store.devices.add_device(device("pi-c"), "other", key("kid-c"), entry())).id
    plain = decision(other, "o", 1, met=state(), basis=Basis(None, None, (), "other", Signers()))
    results = await asyncio.gather(
        store.decisions.decide(permit(device_id, "n1", 1, signed(by, 9), signers)),
        store.decisions.decide(permit(device_id, "n2", 2, signed(by, 8), signers)),
        store.decisions.decide(plain),
        return_exceptions=True,
    )
    codes = [getattr(result, "code", None) for result in results]
    assert codes == [None, "policy-changed", None]
    highest = (await current(store)).signers[0].highest["web"]
    assert (highest.version, highest.at) == (9, NOW)


async def recalled(store: SqlStore) -> BoundKey:
    """The key, as the store recalls it after a challenge."""
    await store.decisions.find_question("kid")
    found = store.decisions.recall_key("kid")
    assert found is not None
    return found


@pytest.mark.parametrize("both", [True, False], ids=["in one batch", "one after the other"])
async def test_a_recalled_permit_sees_the_version_that_another_raised(store: SqlStore, *, both: bool) -> None:
    """Both were appraised by the same rows: the second would go back behind the first."""
    by = signer(no_rollback=True)
    device_id = await registry(store, Signers((by,)))
    bound = await recalled(store)
    first, second = (
        replace(
            permit(device_id, f"n{version}", ticks, signed(by, version), Signers((by,))),
            reading=bound.reading,
        )
        for ticks, version in ((1, 9), (2, 8))
    )
    if both:
        results = await asyncio.gather(
            store.decisions.decide(first), store.decisions.decide(second), return_exceptions=True
        )
        assert [getattr(result, "code", None) for result in results] == [None, "policy-changed"]
    else:
        await store.decisions.decide(first)
        with pytest.raises(Conflict, match="since its rows were recalled"):
            await store.decisions.decide(second)
    assert (await current(store)).signers[0].highest["web"].version == 9


async def test_a_recalled_permit_raises_the_version(store: SqlStore) -> None:
    """As one by rows that were read for it; the next challenge reads the policy anew."""
    by = signer()
    device_id = await registry(store, Signers((by,)))
    bound = await recalled(store)
    decided = permit(device_id, "n1", 1, signed(by, 7), Signers((by,)))
    await store.decisions.decide(replace(decided, reading=bound.reading))
    assert await current(store) == Signers((by,)).raised(signed(by, 7), NOW)
    policy_now = (await recalled(store)).policy
    assert policy_now is not None
    assert policy_now.signers == await current(store)


async def test_a_recalled_permit_raises_no_version_in_a_foreign_row(store: SqlStore) -> None:
    """An attacker who writes to the database and puts the number of the registry back."""
    by = signer()
    device_id = await registry(store, Signers((by,)))
    bound = await recalled(store)
    decided = permit(device_id, "n1", 1, signed(by, 7), Signers((by,)))

    def tamper(connection: sa.Connection) -> None:
        before = versioned.read(connection)
        connection.execute(tables.policy.update().values(trust_predictions=True))
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        connection.execute(versioned.registry_version.update().values(version=before))

    await store._database.write(tamper)
    with pytest.raises(TangAttestError) as error:
        await store.decisions.decide(replace(decided, reading=bound.reading))
    assert error.value.code == "registry-tampered"
    assert not [row for _, row in await store.audit.list_audit() if row.event == "unlock"]


async def test_a_moved_device_forgets_what_vouched_for_it(store: SqlStore) -> None:
    """Another policy has other signers."""
    by = signer()
    device_id = await registry(store, Signers((by,)))
    await store.decisions.decide(permit(device_id, "n1", 1, signed(by, 7), Signers((by,))))
    await store.policies.add_policy(policy("other"), entry())
    await store.devices.move_device("pi-b", "other", "policy", entry())
    assert (await store.devices.get_device("pi-b")).signed is None


async def test_a_version_is_never_lowered(store: SqlStore) -> None:
    """Also if the time of the permit is earlier."""
    by = signer()
    high = Signers((by,)).raised(signed(by, 9), NOW)
    assert high.raised(signed(by, 8), NOW + timedelta(days=1)) == high
    assert high.raised(signed(by, 1, "db/1"), NOW).signers[0].highest.keys() == {"web", "db"}
