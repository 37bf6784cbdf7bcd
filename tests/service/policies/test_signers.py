"""Signed values on a whole server: an update that nobody approves, and everything that stops one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Conflict, Malformed, NotFound, Refused
from tang_attest.protocol.challenge import verify_digest
from tang_attest.protocol.signed_values import statement
from tang_attest.protocol.signed_values.statement import ValueStatement
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.rollouts import Rollouts, RolloutTerms
from tang_attest.service.policies.signers import PolicySigners, SignerTerms
from tests.attester import Attester, members
from tests.fakes import RealRandomness
from tests.keys.rsa_keys import draw
from tests.protocol.signed_values import signing
from tests.protocol.signed_values.signing import PrivateKey
from tests.server import Answer, Server, evidence, new_x
from tests.service.unlock.test_meanwhile import Deed, between

SELECTION = "sha256:4,7,9,15"
IMAGE_SELECTION = "sha256:4,7,11,15"


async def machine(server: Server, attester: Attester, selection: str = SELECTION) -> str:
    """A machine that booted as in ``ovmf``, enrolled as ``pi-b``."""
    attester.boot("ovmf")
    return await server.enroll(attester, selection=Selection.parse(selection))


def signers(server: Server) -> PolicySigners:
    """The operator's tools."""
    return PolicySigners(server.store, server.clock, Author.operator("tester"))


async def trust(server: Server, key: PrivateKey, *pcrs: int, **terms: Any) -> None:
    """Let the policy of pi-b trust *key*."""
    force = terms.pop("force", False)
    fields = {"name": "pipeline", **terms}
    await signers(server).trust(
        "pi-b", SignerTerms(pem=signing.public_pem(key), pcrs=pcrs, **fields), force=force
    )


def signed(server: Server, key: PrivateKey, values: Mapping[int, bytes], **changes: Any) -> str:
    """A statement that counts now."""
    now = server.clock.now().replace(microsecond=0)
    fields: dict[str, Any] = {
        "policies": ("pi-b",),
        "bank": "sha256",
        "values": dict(values),
        "label": "web/2",
        "version": 2,
        "not_before": now - timedelta(hours=1),
        "not_after": now + timedelta(days=30),
    }
    return statement.sign(ValueStatement(**(fields | changes)), signing.private_pem(key))


def update(attester: Attester, *pcrs: int, text: bytes = b"update") -> dict[int, bytes]:
    """Boot something else that is measured into *pcrs*; their values."""
    attester.boot("ovmf")
    for pcr in pcrs:
        attester.extend(pcr, text)
    return {pcr: attester.pcrs["sha256"][pcr] for pcr in pcrs}


async def unlock(server: Server, attester: Attester, kid: str, **signed_values: Any) -> Answer:
    """An unlock that brings *signed_values*."""
    x = dict(members(new_x()))
    proof: dict[str, Any] = dict(evidence(attester, kid, x, await server.challenge(kid)))
    return await server.post(f"/rec/{kid}", x | {"attest": proof | {"signed_values": signed_values}})


def key() -> ec.EllipticCurvePrivateKey:
    """A pipeline's key."""
    return ec.generate_private_key(ec.SECP256R1())


async def permits(server: Server) -> list[dict[str, Any]]:
    """The details of the last permitted unlocks, newest first."""
    entries = await server.store.audit.list_audit()
    return [dict(entry.details) for _, entry in entries if entry.event == "unlock" and entry.code == "ok"]


async def test_an_update_that_a_pipeline_signed_opens_the_disk(server: Server, attester: Attester) -> None:
    """Nobody approves it; the record and the device say who signed, and the boot becomes no state."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    values = update(attester, 4, 9)
    assert (await unlock(server, attester, kid)).code == "pcr-mismatch"
    text = signed(server, pipeline, values)
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    expected = {"label": "web/2", "signer": "pipeline", "version": 2, "pcrs": [4, 9]}
    [details] = await permits(server)
    assert details["signed"] == expected
    device = await server.store.devices.get_device("pi-b")
    assert device.signed is not None
    assert device.signed.named() == expected
    policy = await server.store.policies.get_policy("pi-b")
    assert len(policy.states) == 1
    assert policy.signers.signers[0].highest["web"].version == 2
    assert server.site.metrics is not None
    assert (
        'tang_attest_signed_permits_total{form="statement"} 1.0'
        in (await server.site.metrics.text()).decode()
    )
    # For this boot only: without the statement the next one is refused.
    assert (await unlock(server, attester, kid)).code == "pcr-mismatch"


async def test_an_image_that_a_vendor_signed_opens_the_disk(server: Server, attester: Attester) -> None:
    """Two images, one after the other; another phase and a foreign signature are refused, and say why."""
    attester.boot("ovmf")
    vendor = draw(2048)
    kid = await learned(server, attester)
    await trust(server, vendor, 11, name="vendor", label="images")
    for text in (b"first", b"second"):
        value = update(attester, 11, text=text)[11]
        assert (await unlock(server, attester, kid, pcrsig=signing.pcrsig(vendor, value))).status == 200
    [details, _] = (await permits(server))[:2]
    assert details["signed"]["signer"] == "vendor"
    assert details["signed"]["label"].startswith("images/")
    other = signing.pcrsig(vendor, b"\x0b" * 32)
    assert (await unlock(server, attester, kid, pcrsig=other)).code == "statement-mismatch"
    foreign = signing.pcrsig(draw(2048), value)
    assert (await unlock(server, attester, kid, pcrsig=foreign)).code == "statement-untrusted"


async def learned(server: Server, attester: Attester) -> str:
    """A machine whose policy has PCR 11, learned in its first boot."""
    kid = await server.enroll(attester, selection=Selection.parse(IMAGE_SELECTION))
    assert (await server.unlock(attester, kid)).code == "state-learned"
    return kid


async def test_a_lower_version_is_refused(server: Server, attester: Attester) -> None:
    """Once a higher one was permitted; so is the state that was recorded before."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9, no_rollback=True)
    old = update(attester, 4, 9, text=b"old")
    older = signed(server, pipeline, old, version=1, label="web/1")
    assert (await unlock(server, attester, kid, statements=[older])).status == 200
    server.clock.advance(seconds=1)
    new = update(attester, 4, 9, text=b"new")
    newer = signed(server, pipeline, new, version=5, label="web/5")
    assert (await unlock(server, attester, kid, statements=[newer])).status == 200
    attester.boot("ovmf")
    for pcr in (4, 9):
        attester.extend(pcr, b"old")
    refused = await unlock(server, attester, kid, statements=[older])
    assert refused.code in ("statement-rolled-back", "statement-mismatch")


async def test_a_dropped_signer_counts_no_more(server: Server, attester: Attester) -> None:
    """At once; and another key under the same name does not make its statements good again."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    text = signed(server, pipeline, update(attester, 4, 9))
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    await signers(server).drop("pi-b", "pipeline")
    assert (await unlock(server, attester, kid, statements=[text])).code == "pcr-mismatch"
    await trust(server, key(), 4, 9)
    assert (await unlock(server, attester, kid, statements=[text])).code == "statement-untrusted"


async def test_a_retired_label_counts_no_more_until_it_is_reinstated(
    server: Server, attester: Attester
) -> None:
    """Family and label."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    text = signed(server, pipeline, update(attester, 4, 9))
    for label in ("web", "web/2"):
        await signers(server).retire("pi-b", label)
        assert (await unlock(server, attester, kid, statements=[text])).code == "statement-retired"
        with pytest.raises(Conflict):
            await signers(server).retire("pi-b", label)
        await signers(server).reinstate("pi-b", label)
        assert (await unlock(server, attester, kid, statements=[text])).status == 200
    with pytest.raises(NotFound):
        await signers(server).reinstate("pi-b", "web")


@pytest.mark.parametrize(
    ("deed", "code"),
    [
        (lambda it: signers(it).drop("pi-b", "pipeline"), "pcr-mismatch"),
        (lambda it: signers(it).retire("pi-b", "web"), "statement-retired"),
        (lambda it: held(it, "web"), "state-not-rolled-out"),
    ],
    ids=["dropped", "retired", "held back"],
)
async def test_a_signer_that_is_withdrawn_during_an_appraisal_counts_no_more(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch, deed: Deed, code: str
) -> None:
    """Between the appraisal and its record: the evidence is judged again, and gets no Y."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    text = signed(server, pipeline, update(attester, 4, 9))
    between(server, monkeypatch, deed)
    assert (await unlock(server, attester, kid, statements=[text])).code == code
    assert await permits(server) == []


async def test_the_values_of_an_older_release_are_signed_again_to_go_back(
    server: Server, attester: Attester
) -> None:
    """With a higher version and a label of their own, as the how-to says; or the signer is trusted anew."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9, no_rollback=True)
    old = update(attester, 4, 9, text=b"old")
    new = update(attester, 4, 9, text=b"new")
    text = signed(server, pipeline, new, label="web/31", version=31)
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    await signers(server).retire("pi-b", "web/31")
    assert (await unlock(server, attester, kid, statements=[text])).code == "statement-retired"
    update(attester, 4, 9, text=b"old")
    lower = signed(server, pipeline, old, label="web/30", version=30)
    assert (await unlock(server, attester, kid, statements=[lower])).code == "statement-rolled-back"
    again = signed(server, pipeline, old, label="web/30-again", version=32)
    assert (await unlock(server, attester, kid, statements=[again])).status == 200
    assert (await unlock(server, attester, kid, statements=[lower])).code == "statement-rolled-back"
    await signers(server).drop("pi-b", "pipeline")
    await trust(server, pipeline, 4, 9, no_rollback=True)
    assert (await unlock(server, attester, kid, statements=[lower])).status == 200


async def test_two_keys_count_while_one_replaces_the_other(server: Server, attester: Attester) -> None:
    """The rotation of a key, without a moment in which nothing counts."""
    kid, old, new = await machine(server, attester), key(), key()
    await trust(server, old, 4, 9, name="old")
    await trust(server, new, 4, 9, name="new")
    values = update(attester, 4, 9)
    for each in (old, new):
        assert (await unlock(server, attester, kid, statements=[signed(server, each, values)])).status == 200
    await signers(server).drop("pi-b", "old")
    assert (await unlock(server, attester, kid, statements=[signed(server, old, values)])).status == 403
    assert (await unlock(server, attester, kid, statements=[signed(server, new, values)])).status == 200


async def test_a_posted_statement_counts_for_machines_that_bring_none(
    server: Server, attester: Attester
) -> None:
    """Until its time is over, its label is retired, or its signer is dropped."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    text = signed(server, pipeline, update(attester, 4, 9))
    await signers(server).post("pi-b", f"{text}\n")
    assert (await server.unlock(attester, kid)).status == 200
    await signers(server).retire("pi-b", "web/2")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    with pytest.raises(Refused) as refusal:
        await signers(server).post("pi-b", text)
    assert refusal.value.code == "statement-retired"
    await signers(server).reinstate("pi-b", "web/2")
    await signers(server).post("pi-b", text)
    server.clock.advance(days=31)
    assert (await server.unlock(attester, kid)).code == "statement-expired"
    with pytest.raises(Refused) as refusal:
        await signers(server).post("pi-b", text)
    assert refusal.value.code == "statement-expired"


async def test_a_posted_statement_is_replaced_by_a_newer_one(server: Server, attester: Attester) -> None:
    """One of each label; beyond the limit nothing is kept silently."""
    await machine(server, attester)
    pipeline = key()
    await trust(server, pipeline, 4, 9)
    values = update(attester, 4, 9)
    for version in (1, 2, 2):
        await signers(server).post("pi-b", signed(server, pipeline, values, version=version))
    kept = (await signers(server).signers("pi-b")).statements
    assert [statement.inspect(text)[1].version for text in kept] == [2]
    for number in range(7):
        await signers(server).post("pi-b", signed(server, pipeline, values, label=f"more/{number}"))
    with pytest.raises(Refused) as refusal:
        await signers(server).post("pi-b", signed(server, pipeline, values, label="more/8"))
    assert refusal.value.code == "announcements-full"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"policies": ("other",)}, "statement-elsewhere"),
        ({"values": {7: b"\x07" * 32}}, "statement-out-of-scope"),
        ({"label": "db/1"}, "statement-out-of-scope"),
    ],
)
async def test_what_would_not_count_is_not_kept(
    server: Server, attester: Attester, changes: dict[str, Any], code: str
) -> None:
    """The poster learns it at once."""
    await machine(server, attester)
    pipeline = key()
    await trust(server, pipeline, 4, 9, label="web")
    values = changes.pop("values", {4: b"\x04" * 32})
    with pytest.raises(Refused) as refusal:
        await signers(server).post("pi-b", signed(server, pipeline, values, **changes))
    assert refusal.value.code == code
    with pytest.raises(Refused) as refusal:
        await signers(server).post("pi-b", signed(server, key(), {4: b"\x04" * 32}))
    assert refusal.value.code == "statement-untrusted"
    with pytest.raises(Malformed):
        await signers(server).post("pi-b", "no statement")


@pytest.mark.parametrize(
    "signed_values",
    [
        {},
        {"future": 1},
        {"pcrsig": []},
        {"pcrsig": {"sha256": [{}] * 33}},
        {"statements": "x"},
        {"statements": [1]},
        {"statements": ["x"] * 9},
        {"statements": [{}]},
        {"pcrsig": None, "statements": None},
    ],
)
async def test_what_is_wrong_inside_is_as_if_it_were_not_there(
    server: Server, attester: Attester, signed_values: dict[str, Any]
) -> None:
    """An approved boot opens; another one is refused, never malformed."""
    kid = await machine(server, attester)
    await trust(server, key(), 4, 9)
    assert (await unlock(server, attester, kid, **signed_values)).status == 200
    update(attester, 4, 9)
    assert (await unlock(server, attester, kid, **signed_values)).status == 403


async def test_a_member_of_another_type_is_malformed(server: Server, attester: Attester) -> None:
    """The member itself is an object; null is the same as absent."""
    kid = await machine(server, attester)
    x = dict(members(new_x()))
    for value, code in (([], "evidence-malformed"), ("x", "evidence-malformed"), (None, "ok")):
        proof: dict[str, Any] = dict(evidence(attester, kid, x, await server.challenge(kid)))
        answer = await server.post(f"/rec/{kid}", x | {"attest": proof | {"signed_values": value}})
        assert answer.code == code


async def test_a_member_that_is_there_twice_is_malformed(server: Server, attester: Attester) -> None:
    """As anywhere in a request."""
    kid = await machine(server, attester)
    x = dict(members(new_x()))
    proof = json.dumps(evidence(attester, kid, x, await server.challenge(kid)))
    twice = proof[:-1] + ',"signed_values":{"statements":[],"statements":[]}}'
    body = json.dumps(x)[:-1] + f',"attest":{twice}}}'
    assert (await server.post(f"/rec/{kid}", body.encode())).code == "request-malformed"


async def test_unlocks_of_a_new_version_at_once(server: Server, attester: Attester) -> None:
    """One raises the version, and the others are judged again by it."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9, no_rollback=True)
    text = signed(server, pipeline, update(attester, 4, 9))
    answers = await asyncio.gather(*(unlock(server, attester, kid, statements=[text]) for _ in range(6)))
    assert {answer.status for answer in answers} <= {200, 403}
    assert any(answer.status == 200 for answer in answers)
    [signer] = (await signers(server).signers("pi-b")).signers
    assert signer.highest["web"].version == 2


async def test_a_running_machine_is_verified_by_what_opened_it(server: Server, attester: Attester) -> None:
    """Its round needs no statement; when the signer is dropped, it is refused at once."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    text = signed(server, pipeline, update(attester, 4, 9))
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    attester.extend(15, b"tang-attest/v1 cap\n")
    assert (await a_round(server, attester, kid)) == "ok"
    await signers(server).drop("pi-b", "pipeline")
    assert (await a_round(server, attester, kid)) == "pcr-mismatch"
    await trust(server, pipeline, 4, 9)
    await signers(server).retire("pi-b", "web")
    assert (await a_round(server, attester, kid)) == "statement-retired"
    await signers(server).reinstate("pi-b", "web")
    # Another boot has to be vouched for again.
    attester.boot("ovmf")
    for pcr in (4, 9):
        attester.extend(pcr, b"other")
    attester.extend(15, b"tang-attest/v1 cap\n")
    assert (await a_round(server, attester, kid)) == "pcr-mismatch"


async def test_a_recorded_running_policy_believes_what_opened_the_machine(
    server: Server, attester: Attester
) -> None:
    """Its other PCRs stay as recorded; the signers are those of the boot's policy, dropped and retired as there."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    await record_running(server, attester)
    text = signed(server, pipeline, update(attester, 4, 9))
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    attester.extend(15, PCRMACHINE)
    assert (await a_round(server, attester, kid)) == "ok"
    attester.extend(7, b"other keys")
    assert (await a_round(server, attester, kid)) == "pcr-mismatch"
    update(attester, 4, 9)
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    attester.extend(15, PCRMACHINE)
    await signers(server).retire("pi-b", "web")
    assert (await a_round(server, attester, kid)) == "statement-retired"
    await signers(server).reinstate("pi-b", "web")
    assert (await a_round(server, attester, kid)) == "ok"
    await signers(server).drop("pi-b", "pipeline")
    assert (await a_round(server, attester, kid)) == "pcr-mismatch"


async def test_a_signer_of_the_running_policy_itself_counts_too(server: Server, attester: Attester) -> None:
    """A statement that was posted to it needs no other."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, key(), 4, 9, name="another")
    await record_running(server, attester)
    terms = SignerTerms(name="pipeline", pem=signing.public_pem(pipeline), pcrs=(4, 9))
    await signers(server).trust("pi-b-running", terms, force=True)
    values = update(attester, 4, 9)
    attester.extend(15, PCRMACHINE)
    assert (await a_round(server, attester, kid)) == "pcr-mismatch"
    await signers(server).post("pi-b-running", signed(server, pipeline, values, policies=("pi-b-running",)))
    assert (await a_round(server, attester, kid)) == "ok"


#: Extended after the boot, so that the policy of the boot does not fit the running machine.
PCRMACHINE = b"as systemd-pcrmachine"


async def record_running(server: Server, attester: Attester) -> None:
    """Record what the machine looks like while it runs."""
    attester.extend(15, PCRMACHINE)
    verifier = server.verify
    device = await server.store.devices.get_device("pi-b")
    values = {pcr: attester.pcrs["sha256"][pcr] for pcr in (4, 7, 9, 15)}
    await verifier.record_values(device, Selection.parse(SELECTION), values, "operator:tester")


async def a_round(server: Server, attester: Attester, kid: str) -> str:
    """The code of one round."""
    asked = (await server.post(f"/attest/agent/{kid}", {})).body["challenge"]
    binding = verify_digest(asked["nonce"], kid)
    answer = await server.post(
        f"/attest/agent/{kid}/evidence", attester.evidence(asked["nonce"], binding, asked["selection"])
    )
    return str(answer.body["code"])


async def test_a_dry_run_knows_what_was_signed(server: Server, attester: Attester) -> None:
    """A machine that boots a signed update is not among those that a change would refuse."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    text = signed(server, pipeline, update(attester, 4, 9))
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    changes = PolicyChanges(server.store, server.clock, Author.operator("tester"))
    policy = await server.store.policies.get_policy("pi-b")
    values = {str(pcr): b"\xee".hex() * 32 for pcr in policy.selection.pcrs}
    change = await changes.parse("pi-b", {"add": [{"label": "new", "values": values}]})
    assert (await changes.dry_run("pi-b", change)).refused == ()
    assert (await changes.dry_run("pi-b", change)).already == ()


# --- rollouts -----------------------------------------------------------------------------------------------


def rollouts(server: Server) -> Rollouts:
    """The operator's tools."""
    return Rollouts(server.store, server.clock, RealRandomness(), Author.operator("tester"))


async def held(server: Server, label: str = "web", audience: str = "canary") -> None:
    """Start a rollout that holds *label* back."""
    changes = PolicyChanges(server.store, server.clock, Author.operator("tester"))
    change = await changes.parse("pi-b", {"signed": [label]})
    await rollouts(server).start("pi-b", change, RolloutTerms("r", None, audience, 0))


async def test_a_canary_holds_signed_values_back(server: Server, attester: Attester) -> None:
    """A machine outside the audience waits; once it is in, it passes and is counted; finished, all pass."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    await held(server)
    values = update(attester, 4, 9)
    text = signed(server, pipeline, values)
    assert (await unlock(server, attester, kid, statements=[text])).code == "state-not-rolled-out"
    free = signed(server, pipeline, values, label="db/1")
    assert (await unlock(server, attester, kid, statements=[free])).status == 200
    await server.devices.label(["pi-b"], add=["canary"], remove=[])
    assert (await unlock(server, attester, kid, statements=[text])).status == 200
    status = await rollouts(server).status("pi-b")
    assert [(each.device, each.about) for each in status.passed] == [("pi-b", "web/2")]
    await rollouts(server).finish("pi-b")
    await server.devices.label(["pi-b"], add=[], remove=["canary"])
    assert (await unlock(server, attester, kid, statements=[text])).status == 200


async def test_an_abandoned_rollout_retires_what_it_held(server: Server, attester: Attester) -> None:
    """The labels count for nobody."""
    kid, pipeline = await machine(server, attester), key()
    await trust(server, pipeline, 4, 9)
    await held(server)
    await rollouts(server).abandon("pi-b", "it is bad")
    text = signed(server, pipeline, update(attester, 4, 9))
    assert (await unlock(server, attester, kid, statements=[text])).code == "statement-retired"
    assert (await signers(server).signers("pi-b")).retired == ("web",)


async def test_labels_of_signed_values_wait_for_a_rollout_only(server: Server, attester: Attester) -> None:
    """Applied at once they would mean nothing; without a signer, too."""
    await machine(server, attester)
    changes = PolicyChanges(server.store, server.clock, Author.operator("tester"))
    with pytest.raises(Malformed, match="trusts no signer"):
        await changes.parse("pi-b", {"signed": ["web"]})
    await trust(server, key(), 4, 9)
    change = await changes.parse("pi-b", {"signed": ["web"]})
    with pytest.raises(Malformed, match="rollout"):
        await changes.apply("pi-b", change, force=False)


# --- trusting -----------------------------------------------------------------------------------------------


async def test_pcr_11_needs_secure_boot_or_pcr_4(server: Server, attester: Attester) -> None:
    """A policy whose machines boot without Secure Boot is refused, unless the operator accepts the gap."""
    attester.boot("ovmf")
    await server.enroll(attester, selection=Selection.parse("sha256:7,11,15"))
    with pytest.raises(Refused) as refusal:
        await trust(server, draw(2048), 11)
    assert refusal.value.code == "signer-unsafe"
    await trust(server, draw(2048), 11, force=True)


async def test_secure_boot_is_shown_by_the_machines_logs(server: Server, attester: Attester) -> None:
    """A boot with Secure Boot on proves it, for a policy with PCR 7."""
    attester.boot("secure-boot")
    await server.enroll(attester, selection=Selection.parse("sha256:7,9,15"))
    await trust(server, key(), 9)


@pytest.mark.parametrize("pcrs", [(7,), (15,), (5,), ()])
async def test_a_scope_that_no_signer_gets(server: Server, attester: Attester, pcrs: tuple[int, ...]) -> None:
    """PCR 7, the cap, a PCR that is not quoted, none; force does not help."""
    await machine(server, attester)
    with pytest.raises(Malformed) as error:
        await trust(server, key(), *pcrs, force=True)
    assert error.value.code == "signer-unsuitable"


async def test_a_name_and_a_key_are_there_once(server: Server, attester: Attester) -> None:
    """Two signers with one key would make a drop of one of them worthless."""
    await machine(server, attester)
    pipeline = key()
    await trust(server, pipeline, 4, 9)
    for again, name in ((key(), "pipeline"), (pipeline, "other")):
        with pytest.raises(Conflict) as error:
            await trust(server, again, 4, name=name)
        assert error.value.code == "name-taken"
