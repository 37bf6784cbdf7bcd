"""Enrollment over HTTP: what an honest machine meets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from tang_attest.errors import Conflict
from tang_attest.ports.decisions import BoundKey, Decision
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.pcr import Selection
from tests.attester import Attester
from tests.server import Server


async def test_the_answer_names_everything_a_pin_needs(server: Server, attester: Attester) -> None:
    """docs/protocol.md, 4.2."""
    begun = await server.begin(attester, "pi-b", await server.token())
    assert set(begun.body) == {
        "session",
        "credential_blob",
        "encrypted_secret",
        "nonce",
        "selection",
        "cap_pcr",
        "versions",
        "expires_in",
    }
    assert len(begun.body["session"]) <= 8192
    done = await server.finish(attester, "pi-b", begun)
    assert done.status == 201
    advertisement = done.body.pop("advertisement")
    kid = done.body["kid"]
    assert done.body == {
        "name": "pi-b",
        "kid": kid,
        "policy": "pi-b",
        "selection": "sha256:0,2,4,7",
        "cap_pcr": 15,
        "versions": ["1.1", "1.2"],
        "ek_verified": False,
        "learning": False,
        "coverage": "unknown: no event log came with the values",
    }
    again = await server.request("GET", f"/attest/adv/{kid}")
    assert (again.status, again.headers["Content-Type"]) == (200, "application/jose+json")
    assert again.body["payload"] == advertisement["payload"]


async def test_the_advertisement_is_signed_by_the_server(server: Server, attester: Attester) -> None:
    """And holds the signing key and the device's exchange key, as Tang's does."""
    kid = await server.enroll(attester)
    text = json.dumps((await server.request("GET", f"/attest/adv/{kid}")).body)
    jws = JWS()
    jws.deserialize(text)
    keys = json.loads(jws.objects["payload"])["keys"]
    signing, exchange = (JWK(**key) for key in keys)
    jws.verify(signing)
    assert signing.thumbprint() == server.thp
    assert exchange.thumbprint() == kid
    assert keys[1]["alg"] == "ECMR"
    assert keys[1]["key_ops"] == ["deriveKey"]
    assert "d" not in keys[0] | keys[1]


async def test_the_advertisement_names_the_ak(server: Server, attester: Attester) -> None:
    """A pin that finds another AK there knows that somebody else used its token."""
    kid = await server.enroll(attester)
    jws = JWS()
    jws.deserialize(json.dumps((await server.request("GET", f"/attest/adv/{kid}")).body))
    assert json.loads(jws.objects["payload"])["ak_name"] == parse_ak(attester.ak_public).name.hex()


async def test_a_rotated_key_leads_to_the_newest(server: Server, attester: Attester) -> None:
    """A disk that is bound anew gets the device's new key."""
    old = await server.enroll(attester)
    server.clock.advance(seconds=1)
    new, _ = await server.keys.rotate_device("pi-b")
    jws = JWS()
    jws.deserialize(json.dumps((await server.request("GET", f"/attest/adv/{old}")).body))
    assert JWK(**json.loads(jws.objects["payload"])["keys"][1]).thumbprint() == new


async def test_the_servers_own_advertisement_has_no_device_key(server: Server, attester: Attester) -> None:
    """/adv shows signing keys; a stock tang pin finds nothing to bind to, and says so."""
    kid = await server.enroll(attester)
    answer = await server.request("GET", "/adv")
    assert answer.status == 200
    jws = JWS()
    jws.deserialize(json.dumps(answer.body))
    payload = jws.objects["payload"].decode()
    assert "deriveKey" not in payload
    assert (await server.request("GET", f"/adv/{server.thp}")).status == 200
    assert (await server.request("GET", f"/adv/{kid}")).status == 404


@pytest.mark.parametrize("target", ["/attest/adv/unknown", f"/attest/adv/{'A' * 43}"])
async def test_an_unknown_advertisement(server: Server, target: str) -> None:
    """404 and a code."""
    answer = await server.request("GET", target)
    assert (answer.status, answer.code) == (404, "key-unknown")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/attest/enroll", 405),
        ("PUT", "/attest/enroll/finish", 405),
        ("POST", "/attest/adv/x", 405),
        ("GET", "/attest/", 404),
        ("GET", "/attest/enroll/", 404),
        ("GET", "/attest/adv/a/b", 404),
        ("GET", "/attest/adv/x?y=1", 404),
        ("GET", "/", 404),
        ("GET", "/rec/x", 405),
        ("DELETE", "/rec/x", 405),
        ("HEAD", "/adv", 405),
        ("OPTIONS", "/adv", 405),
    ],
)
async def test_other_targets_and_methods(server: Server, method: str, target: str, status: int) -> None:
    """Never 3xx, never 500."""
    assert (await server.request(method, target)).status == status


async def test_a_token_for_an_existing_policy(server: Server, attester: Attester) -> None:
    """The machine comes under the policy of its token, and its own first quote adds nothing to it."""
    await server.enroll(attester, "first")
    twin, odd = Attester(), Attester()
    odd.extend(4, b"another kernel")
    kid = await server.enroll(twin, "twin", policy="first")
    assert (await server.unlock(twin, kid)).status == 200
    kid = await server.enroll(odd, "odd", policy="first")
    assert (await server.unlock(odd, kid)).code == "pcr-mismatch"
    assert [policy.name for policy in await server.store.policies.list_policies()] == ["first"]


async def test_recording_in_the_running_system(server: Server, attester: Attester) -> None:
    """The running system's cap is not the initrd's: recorded as zero."""
    attester.extend(15, b"the running system")
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,7,15"))
    assert (await server.unlock(attester, kid)).code == "capped"
    attester.pcrs["sha256"][15] = bytes(32)
    assert (await server.unlock(attester, kid)).status == 200


# --- learning -------------------------------------------------------------------------------------------------------

MOVING = Selection.parse("sha256:0,7,11,15")


async def test_learning_the_next_boot(server: Server, attester: Attester) -> None:
    """PCR 11 moves: the first boot is recorded and refused, so that a person is there; the next one opens."""
    begun = await server.begin(attester, "pi-b", await server.token(selection=MOVING))
    done = await server.finish(attester, "pi-b", begun)
    assert done.body["learning"] is True
    kid = done.body["kid"]
    attester.extend(11, b"phase")
    assert (await server.unlock(attester, kid)).code == "state-learned"
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200
    entry = await server.store.devices.get_device("pi-b")
    assert entry.learning is None
    state = (await server.store.policies.get_policy("pi-b")).states[0]
    assert state.origin == "learned"
    assert [e.code for _, e in await server.store.audit.list_audit("pi-b")][:2] == [
        "ok",
        "state-learned",
    ]


async def learned(server: Server, attester: Attester) -> str:
    """A machine whose boot was learned just now; its kid."""
    kid = await server.enroll(attester, selection=MOVING)
    attester.extend(11, b"phase")
    assert (await server.unlock(attester, kid)).code == "state-learned"
    return kid


async def test_a_learned_boot_stays_refused(server: Server, attester: Attester) -> None:
    """However often it asks, after a restart of the TPM without a reset too; the next boot opens."""
    kid = await learned(server, attester)
    for restarts in (0, 0, 1):
        attester.restart_count += restarts
        answer = await server.unlock(attester, kid)
        assert (answer.status, answer.code) == (403, "state-learned")
        server.clock.advance(hours=2)
    assert await server.store.policies.list_observations("pi-b") == []
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200


@pytest.mark.parametrize(("before", "after"), [(2**32 - 1, 0), (2**32 - 1, 3), (2**31 - 1, 2**31)])
async def test_a_learned_state_counts_when_the_counter_passes_zero(
    server: Server, attester: Attester, before: int, after: int
) -> None:
    """A TPM adds a secret constant to its counters, modulo 2^32."""
    attester.reset_count = before
    kid = await learned(server, attester)
    assert (await server.unlock(attester, kid)).code == "state-learned"
    attester.reset_count = after
    assert (await server.unlock(attester, kid)).status == 200


async def test_a_state_that_was_learned_of_one_machine_is_good_for_another(
    server: Server, attester: Attester
) -> None:
    """The other machine's boot is not the one in which a person has to be there."""
    await learned(server, attester)
    other = Attester()
    other.pcrs = {bank: dict(values) for bank, values in attester.pcrs.items()}
    terms = {"policy": "pi-b", "record": False, "learn_for": timedelta(0)}
    assert (await server.unlock(other, await server.enroll(other, "pi-c", **terms))).status == 200


async def test_two_requests_of_a_boot_that_is_learned(server: Server, attester: Attester) -> None:
    """None opens, whichever is written first, and none opens afterwards."""
    kid = await server.enroll(attester, selection=MOVING)
    attester.extend(11, b"phase")
    answers = await asyncio.gather(*(server.unlock(attester, kid) for _ in range(4)))
    assert {answer.status for answer in answers} == {403}
    assert {answer.code for answer in answers} <= {"state-learned", "pcr-mismatch"}
    assert "state-learned" in {answer.code for answer in answers}
    assert (await server.unlock(attester, kid)).code == "state-learned"


async def test_a_permit_that_was_appraised_before_the_boot_was_learned(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that reads the device before the first one is written, and the policy afterwards, gets nothing."""
    kid = await server.enroll(attester, selection=MOVING)
    attester.extend(11, b"phase")
    before = await server.store.decisions.find_key(kid)
    assert (await server.unlock(attester, kid)).code == "state-learned"
    after = await server.store.decisions.find_key(kid)
    assert before is not None
    assert after is not None

    async def torn(_kid: str) -> BoundKey:
        return replace(after, device=before.device)

    monkeypatch.setattr(server.store.decisions, "find_key", torn)
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code) == (403, "state-learned")
    assert (await server.store.audit.list_audit("pi-b"))[0][1].verdict == "refused"


async def test_learning_is_not_for_another_kernel(server: Server, attester: Attester) -> None:
    """PCRs that were stable at enrollment have to be unchanged; the use stays armed for the honest boot."""
    kid = await server.enroll(attester, selection=MOVING)
    honest = dict(attester.pcrs["sha256"])
    attester.extend(0, b"evil firmware")
    assert (await server.unlock(attester, kid)).code == "policy-empty"
    attester.pcrs["sha256"] = honest
    assert (await server.unlock(attester, kid)).code == "state-learned"


async def test_learning_is_not_for_the_running_system(server: Server, attester: Attester) -> None:
    """A capped quote is not the initrd's."""
    kid = await server.enroll(attester, selection=MOVING)
    attester.extend(15, b"cap")
    assert (await server.unlock(attester, kid)).code == "policy-empty"


async def test_learning_ends_by_itself(server: Server, attester: Attester) -> None:
    """After the window it is an ordinary refusal."""
    kid = await server.enroll(attester, selection=MOVING, learn_for=timedelta(minutes=10))
    server.clock.advance(minutes=10)
    assert (await server.unlock(attester, kid)).code == "policy-empty"


async def test_learning_once(server: Server, attester: Attester) -> None:
    """The second unknown boot is refused."""
    kid = await server.enroll(attester, selection=MOVING)
    assert (await server.unlock(attester, kid)).code == "state-learned"
    attester.extend(11, b"another phase")
    answer = await server.unlock(attester, kid)
    assert (answer.code, answer.body["pcrs"]) == ("pcr-mismatch", [11])


async def test_learning_again_on_the_operators_word(server: Server, attester: Attester) -> None:
    """`device learn` arms it anew, with the stable PCRs of the newest state."""
    kid = await server.enroll(attester, selection=MOVING)
    assert (await server.unlock(attester, kid)).code == "state-learned"
    await server.reference_values.learn("pi-b", timedelta(minutes=5))
    attester.extend(11, b"new image")
    assert (await server.unlock(attester, kid)).code == "state-learned"
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200


# --- approving -------------------------------------------------------------------------------------------------------


async def test_a_refused_quote_is_kept_and_can_be_approved(server: Server, attester: Attester) -> None:
    """The charter's workflow after an update, in one command; the old state stays valid."""
    kid = await server.enroll(attester)
    old = dict(attester.pcrs["sha256"])
    attester.extend(4, b"new kernel")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    observation, state = await server.reference_values.approve("pi-b", "6.1")
    assert (observation.code, state.label, state.origin) == ("pcr-mismatch", "6.1", "observed")
    assert (await server.unlock(attester, kid)).status == 200
    attester.pcrs["sha256"] = old
    assert (await server.unlock(attester, kid)).status == 200


async def test_approving_twice(server: Server, attester: Attester) -> None:
    """The second time there is nothing to do, and nothing is done."""
    kid = await server.enroll(attester)
    attester.extend(4, b"new kernel")
    await server.unlock(attester, kid)
    await server.reference_values.approve("pi-b", "once")
    with pytest.raises(Conflict) as error:
        await server.reference_values.approve("pi-b", "twice")
    assert error.value.code == "values-known"
    assert [state.label for state in (await server.store.policies.get_policy("pi-b")).states][1:] == ["once"]


async def test_only_authentic_evidence_is_kept(server: Server, attester: Attester) -> None:
    """A stranger cannot fill the list of what a person might approve."""
    kid = await server.enroll(attester)
    stranger = Attester()
    stranger.extend(4, b"x")
    assert (await server.unlock(stranger, kid)).code == "signature-invalid"
    assert list(await server.store.policies.list_observations()) == []
    assert (await server.store.audit.list_audit("pi-b"))[0][1].code == "signature-invalid"


async def test_every_decision_is_audited(server: Server, attester: Attester) -> None:
    """Actor, time, kid, verdict, code, differing PCRs, address and request id."""
    kid = await server.enroll(attester)
    await server.unlock(attester, kid)
    attester.extend(4, b"x")
    answer = await server.unlock(attester, kid)
    (_, refused), (_, permitted), (_, enrolled) = (await server.store.audit.list_audit("pi-b"))[:3]
    assert (enrolled.event, enrolled.verdict, enrolled.kid) == ("enroll", "done", kid)
    assert (permitted.event, permitted.verdict, permitted.code) == ("unlock", "permitted", "ok")
    assert (refused.verdict, refused.code, refused.details["pcrs"]) == ("refused", "pcr-mismatch", [4])
    assert (refused.actor, refused.kid, refused.address) == ("device:pi-b", kid, "127.0.0.1")
    assert refused.request_id == answer.body["request_id"]


async def test_an_event_log_travels_with_the_evidence(server: Server, attester: Attester) -> None:
    """And is kept with what was refused, for a person to look at."""
    from tests.attester import members
    from tests.server import evidence, new_x

    kid = await server.enroll(attester)
    attester.extend(4, b"x")
    x = dict(members(new_x()))
    log = (Path(__file__).parents[2] / "vectors" / "eventlogs" / "ovmf.bin").read_bytes()
    body = evidence(attester, kid, x, await server.challenge(kid)) | {"event_log": b64u(log)}
    assert (await server.post(f"/rec/{kid}", x | {"attest": body})).code == "pcr-mismatch"
    assert (await server.store.policies.list_observations())[0].snapshot.event_log == log


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_rotated_device_key_still_answers(server: Server, attester: Attester) -> None:
    """A disk bound to it opens until it is bound anew."""
    old = await server.enroll(attester)
    server.clock.advance(seconds=1)
    new, rotated = await server.keys.rotate_device("pi-b")
    assert rotated == [old]
    for kid in (old, new):
        assert (await server.unlock(attester, kid)).status == 200
    assert (await server.store.devices.get_device("pi-b")).kids[0] == new


async def test_a_rotated_signing_key_is_still_found_by_its_thumbprint(server: Server) -> None:
    """A pin that knows the old thumbprint gets an advertisement signed by both, as with Tang."""
    _, old = await server.keys.rotate()
    assert old == [server.thp]
    answer = await server.request("GET", f"/adv/{server.thp}")
    assert len(answer.body["signatures"]) == 2


async def test_nothing_is_signed_again_while_nothing_changes(server: Server) -> None:
    """ECDSA signatures are random: equal ones were made once."""
    first = (await server.request("GET", "/adv")).body
    assert (await server.request("GET", "/adv")).body == first
    await server.keys.rotate()
    assert (await server.request("GET", "/adv")).body != first


# --- a TPM that a reboot does not reset --------------------------------------------------------------------------------


async def test_a_warm_reboot_without_reset_is_named(server: Server, attester: Attester) -> None:
    """PCRs survived: the values are of no boot, and the counter says why."""
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,7,15"))
    assert (await server.unlock(attester, kid)).status == 200
    for pcr in (0, 7, 15):
        attester.extend(pcr, b"the same software, measured again")
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code, answer.body["pcrs"]) == (403, "tpm-not-reset", [0, 7, 15])


async def test_one_pcr_that_differs_is_not_called_that(server: Server, attester: Attester) -> None:
    """A reboot without reset measures everything twice, not one thing."""
    kid = await server.enroll(attester)
    attester.extend(4, b"x")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"


async def test_another_software_after_a_real_reset_is_not_called_that(
    server: Server, attester: Attester
) -> None:
    """Even when it asks again in the same boot."""
    kid = await server.enroll(attester)
    attester.reset_count += 1
    attester.extend(4, b"new kernel")
    for _ in range(2):
        assert (await server.unlock(attester, kid)).code == "pcr-mismatch"


async def test_counters_pass_through_zero(server: Server, attester: Attester) -> None:
    """A TPM adds a secret constant to the counters it signs for an AK of the owner, modulo 2^32."""
    attester.reset_count = attester.restart_count = 2**32 - 1
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    attester.restart_count = 0
    assert (await server.unlock(attester, kid)).status == 200
    attester.reset_count, attester.restart_count = 0, 7
    assert (await server.unlock(attester, kid)).status == 200
    attester.reset_count = 2**32 - 1
    assert (await server.unlock(attester, kid)).code == "reset-count-backwards"


async def test_a_device_removed_while_it_is_appraised_is_audited(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lookup and the decision the operator removes it: nothing is released, and it is written down."""
    kid = await server.enroll(attester)
    original = server.store.decisions.decide

    async def removed_meanwhile(decision: Decision) -> None:
        await server.devices.remove("pi-b")
        await original(decision)

    monkeypatch.setattr(server.store.decisions, "decide", removed_meanwhile)
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code) == (404, "key-unknown")
    assert (await server.store.audit.list_audit("pi-b"))[0][1].code == "key-unknown"
