"""The vectors against this project's server: its pure core, and whole requests over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import utils

from tang_attest.errors import Malformed, Refused
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.ports.keys import EncryptedKey
from tang_attest.protocol import cap, tpm
from tang_attest.protocol.challenge import (
    Mark,
    Purpose,
    announce_digest,
    check_nonce,
    read_mark,
    unlock_digest,
    verify_digest,
)
from tang_attest.protocol.coverage import coverage
from tang_attest.protocol.enrollment import activation_proof, begin_activation, enrollment_digest
from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.ima import ImaProgress, advance, parse_requirement
from tang_attest.protocol.quote import check_clock
from tang_attest.protocol.signed_values.signer import Highest, Signer, Signers, check_signer
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.values.points import CURVES, parse_point
from tang_attest.service.audit.actors import Author
from tang_attest.service.unlock import challenges
from tang_attest.store.records import nonces
from tang_attest.web.gate.limits import RequestLimits
from tests.conformance.vectors import document, each, number
from tests.server import Server
from tools.conformance.tpm.credential import activate
from tools.conformance.tpm.machine import Machine
from tools.conformance.tpm.structures import Quote
from tools.vectors.activation import AKS, TEMPLATES, key

Vector = dict[str, Any]


def clock(members: dict[str, int]) -> ClockInfo:
    """The clock of a vector."""
    return ClockInfo(members["clock"], members["reset_count"], members["restart_count"], safe=True)


def private(curve: str, scalar: str) -> ec.EllipticCurvePrivateKey:
    """The exchange key of a vector."""
    return ec.derive_private_key(number(scalar), CURVES[curve].implementation)


@pytest.mark.parametrize("vector", each("exchange"))
def test_exchange(vector: Vector) -> None:
    """Y and kid are those of the vector, and coordinates without their zeros are read as well."""
    server = ExchangeKey(private(vector["curve"], vector["s"]))
    assert server.kid == vector["kid"] == thumbprint(vector["S"])
    assert thumbprint(vector["X"]) == vector["thumbprint_X"]
    expected = {name: vector["Y"][name] for name in ("crv", "kty", "x", "y")}
    assert server.multiply(parse_point(vector["X"])).members() == expected
    stripped = {name: b64u(unb64u(vector["X"][name]).lstrip(b"\0")) for name in "xy"}
    assert parse_point({**vector["X"], **stripped}).members() == vector["X"]


@pytest.mark.parametrize("vector", each("activation"))
def test_activation(vector: Vector, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the seed of the vector, the server makes its credential; the digests after it are the same."""
    seed, encrypted = unb64u(vector["seed"]), unb64u(vector["encrypted_secret"])
    monkeypatch.setattr(utils, "_generate_seed", lambda *_: (seed, encrypted[2:]))
    ek, ak = tpm.parse_ek(unb64u(vector["ek_public"])), tpm.parse_ak(unb64u(vector["ak_public"]))
    assert ak.name.hex() == vector["ak_name"]
    made = begin_activation(ek, ak, unb64u(vector["secret"]))
    assert b64u(made.credential_blob) == vector["credential_blob"]
    assert made.encrypted_secret == encrypted
    proof = activation_proof(vector["nonce"], unb64u(vector["secret"]))
    assert proof == vector["proof"]
    assert enrollment_digest(vector["nonce"], vector["device"], proof).hex() == vector["qualifying_data"]


@pytest.mark.parametrize("vector", each("activation"))
def test_the_seeds_of_the_servers_library_are_what_the_kit_recovers(vector: Vector) -> None:
    """Without a given seed: the kit's TPM activates what the server makes, whatever the template."""
    ek, ak = tpm.parse_ek(unb64u(vector["ek_public"])), tpm.parse_ak(unb64u(vector["ak_public"]))
    made = begin_activation(ek, ak, b"s" * 32)
    area, kind = TEMPLATES[vector["template"]]
    ek_private = key(kind, f"ek {vector['template']}")
    assert activate(area, ek_private, ak.name, made.credential_blob, made.encrypted_secret) == b"s" * 32


@pytest.mark.parametrize("vector", each("qualifying-data"))
def test_qualifying_data(vector: Vector) -> None:
    """Each purpose has its digest."""
    nonce = vector["nonce"]
    match vector["purpose"]:
        case "unlock":
            made = unlock_digest(nonce, vector["kid"], vector["thumbprint_X"]).hex()
        case "activate":
            made = activation_proof(nonce, unb64u(vector["secret"]))
        case "enroll":
            made = enrollment_digest(nonce, vector["device"], vector["proof"]).hex()
        case "announce":
            made = announce_digest(nonce, vector["kid"], unb64u(vector["values"]), vector["label"]).hex()
        case "verify":
            made = verify_digest(nonce, vector["kid"]).hex()
        case purpose:
            raise AssertionError(purpose)
    assert made == vector["digest"]


@pytest.mark.parametrize("vector", each("cap"))
def test_cap(vector: Vector) -> None:
    """The texts are read, and lead to the values; other texts are refused."""
    data = "".join(vector["texts"]).encode()
    if not vector["valid"]:
        with pytest.raises(Malformed) as refusal:
            cap.parse(data)
        assert refusal.value.code == "cap-malformed"
        return
    texts = [text.raw for text in cap.parse(data)]
    assert [text.decode() for text in texts] == vector["texts"]
    for bank in ("sha256", "sha384", "sha512"):
        assert cap.replay(texts, bank).hex() == vector["values"][bank]


@pytest.mark.parametrize("vector", each("counters"))
def test_counters(vector: Vector) -> None:
    """Step 9 of the order of checks."""
    code = None
    try:
        check_clock(clock(vector["newest"]), clock(vector["quote"]))
    except Refused as refusal:
        code = refusal.code
    assert code == vector["code"]


@pytest.mark.parametrize("vector", each("event-logs"))
def test_event_log(vector: Vector) -> None:
    """Replay, and the parts that each selection covers."""
    log = parse(unb64u(vector["log"]))
    replayed = {str(pcr): value.hex() for pcr, value in replay(log, vector["bank"]).items()}
    assert replayed == vector["values"]
    for selection, parts in vector["coverage"].items():
        found = coverage(log, Selection.parse(selection))
        assert {part.part.value: part.as_json() for part in found.parts} == parts


@pytest.mark.parametrize("vector", each("ima"))
def test_ima(vector: Vector) -> None:
    """Each round leads to its outcome, and says where the next part begins."""
    requirement = parse_requirement({"files": [{"path": "/usr/bin/.*", "digests": [f"sha256:{'00' * 32}"]}]})
    progress = ImaProgress.begin(1, requirement, vector["bank"])
    for each_round in vector["rounds"]:
        assert progress.offset == each_round["ima_offset"]
        quoted = {int(pcr): bytes.fromhex(value) for pcr, value in vector["pcrs"].items()}
        quoted[10] = bytes.fromhex(each_round["quoted"])
        try:
            progress, met = advance(
                progress, unb64u(each_round["ima"]), quoted, requirement, each_round["limit"]
            )
            outcome = "met" if met else "ima-incomplete"
        except Refused as refusal:
            outcome, progress = refusal.code, ImaProgress.begin(1, requirement, vector["bank"])
        assert (outcome, progress.offset) == (each_round["outcome"], each_round["next_offset"])


# --- whole requests -----------------------------------------------------------------------------------------------


class Verifier:
    """A server that holds the device of the vectors, and knows their nonces."""

    def __init__(self, server: Server, patch: pytest.MonkeyPatch, kind: str = "requests") -> None:
        self.server, self.patch = server, patch
        self.device = document(kind)["device"]
        self.states: dict[str, str] = {}
        self.newest = clock(self.device["newest_clock"])
        patch.setattr(challenges, "check_nonce", self._check_nonce)
        patch.setattr(challenges, "read_mark", self._read_mark)

    def _check_nonce(
        self, secret: bytes, purpose: Purpose, subject: str, now_ms: int, ttl_s: int, nonce: str
    ) -> int:
        state = self.states.get(nonce)
        if state is None:
            return check_nonce(secret, purpose, subject, now_ms, ttl_s, nonce)
        if state == "expired":
            raise Refused("nonce-expired", "The vector says so.")
        if state == "foreign":
            raise Refused("nonce-invalid", "The vector says so.")
        return now_ms + 100_000

    def _read_mark(self, secret: bytes, nonce: str) -> Mark | None:
        return Mark(self.newest) if nonce in self.states else read_mark(secret, nonce)

    async def enroll(self, kind: str, policy: str | None = None) -> None:
        """Enroll the device of the vectors with one of its AKs, and give it their key."""
        device = self.device

        async def create_exchange(
            keys: EncryptedKeys, _curve: str, now: datetime, holder: str
        ) -> EncryptedKey:
            return keys.encrypt("exchange", private("P-256", device["s"]), now, holder)

        self.patch.setattr(EncryptedKeys, "create_exchange", create_exchange)
        area, name = AKS[kind]
        machine = Machine(key(name, "ak"), key("P-256", "ek L-2"), area)
        machine.clock = self.newest.clock - 10
        machine.reset_count, machine.restart_count = self.newest.reset_count, self.newest.restart_count
        assert b64u(machine.ak_public) == device["aks"][kind]
        selection = Selection.parse(device["selection"])
        token = await self.server.token(name=device["name"], policy=policy, selection=selection)
        body = {"name": device["name"], "token": token, "ak": device["aks"][kind]}
        begun = await self.server.post("/attest/enroll", body | {"ek": b64u(machine.ek_public)})
        assert begun.status == 200, begun
        secret = machine.activate(*(unb64u(begun.body[n]) for n in ("credential_blob", "encrypted_secret")))
        proof = activation_proof(begun.body["nonce"], secret)
        binding = enrollment_digest(begun.body["nonce"], device["name"], proof)
        values = machine.values(device["selection"])
        quote = Quote(binding, machine.reading(), [device["selection"]], machine.digest(values)).marshal()
        evidence = {"quote": b64u(quote), "signature": b64u(machine.sign(quote)), "pcrs": b64u(values)}
        done = await self.server.post(
            "/attest/enroll/finish", {"session": begun.body["session"], "proof": proof, **evidence}
        )
        assert (done.status, done.body["kid"]) == (201, device["kid"]), done
        assert b64u(values) == device["approved"]

    async def use(self, nonce: str) -> None:
        """Use a nonce up, as an answer to it did."""
        digest = hashlib.sha256(nonce.encode()).digest()
        expires = self.server.clock.now() + timedelta(seconds=100)
        await self.server.store._database.write(
            lambda connection: nonces.use(connection, [(digest, expires)])
        )


@pytest.fixture
async def unlimited(tmp_path: Path) -> AsyncIterator[Server]:
    """A server without limits on the number of requests."""
    limits = RequestLimits(address_rate=0, device_rate=0)
    async with Server(tmp_path / "state", limits=limits) as server:
        yield server


@pytest.fixture
def verifier(unlimited: Server, monkeypatch: pytest.MonkeyPatch) -> Verifier:
    """A verifier of the requests."""
    return Verifier(unlimited, monkeypatch)


async def outcome(verifier: Verifier, vector: Vector) -> tuple[int, str | None]:
    """Status and code of the answer to one vector."""
    verifier.states[vector["nonce"]["text"]] = vector["nonce"]["state"]
    if vector["nonce"]["state"] == "used":
        await verifier.use(vector["nonce"]["text"])
    answer = await verifier.server.post(f"/rec/{verifier.device['kid']}", vector["body"].encode())
    if answer.status == 200:
        secret = ec.derive_private_key(number(vector["x_secret"]), ec.SECP256R1())
        s = private("P-256", verifier.device["s"])
        assert unb64u(answer.body["x"]) == secret.exchange(ec.ECDH(), s.public_key())
        return 200, None
    return answer.status, answer.code


async def test_requests(verifier: Verifier) -> None:
    """Each has its status and code; of two faults, that of the earlier step."""
    await verifier.enroll("ecc256:ecdsa-sha256")
    vectors = [it for it in document("requests")["vectors"] if it["ak"] == "ecc256:ecdsa-sha256"]
    found = {it["name"]: await outcome(verifier, it) for it in vectors}
    assert found == {it["name"]: (it["status"], it["code"]) for it in vectors}
    assert len(found) > 100


@pytest.mark.parametrize("kind", [kind for kind in AKS if kind != "ecc256:ecdsa-sha256"])
async def test_requests_of_other_aks(verifier: Verifier, kind: str) -> None:
    """A quote by each scheme is good."""
    await verifier.enroll(kind)
    [vector] = [it for it in document("requests")["vectors"] if it["ak"] == kind]
    assert await outcome(verifier, vector) == (200, None)


# --- signed values ------------------------------------------------------------------------------------------------

POLICY = document("signed-values")["policy"]


def moment(text: str) -> datetime:
    """A time of the vectors."""
    return datetime.fromisoformat(text)


def trusted(names: list[str]) -> Signers:
    """The signers that a vector names, as a verifier holds them."""
    approved_at = moment(POLICY["approved_at"])
    signers = [
        Signer(
            name=it["name"],
            key=unb64u(it["key"]),
            pcrs=tuple(it["pcrs"]),
            label=it["label"],
            no_rollback=it["no_rollback"],
            highest={
                family: Highest(one["version"], moment(one["at"])) for family, one in it["highest"].items()
            },
            added_at=approved_at,
            added_by="operator:tester",
        )
        for it in POLICY["signers"]
        if it["name"] in names
    ]
    selection = Selection.parse(document("signed-values")["device"]["selection"])
    assert [check_signer(signer, selection, 15).name for signer in signers] == names
    return Signers(tuple(signers), tuple(POLICY["retired"]))


async def hold_policy(server: Server) -> None:
    """Make the policy of the vectors, whose state was approved when they say."""
    device = document("signed-values")["device"]
    selection, approved = Selection.parse(device["selection"]), unb64u(device["approved"])
    values = {pcr: approved[at * 32 : at * 32 + 32] for at, pcr in enumerate(selection.pcrs)}
    server.clock.time = moment(POLICY["approved_at"])
    await server.reference_values.create_policy(POLICY["name"], selection, device["cap_pcr"])
    await server.reference_values.record(POLICY["name"], "approved", values, force=False)
    server.clock.time = moment(POLICY["now"])


async def vouched(verifier: Verifier, vector: Vector) -> dict[str, Any] | None:
    """Signer, label and version of the last permit, in its record."""
    if vector["status"] != 200:
        return None
    entries = await verifier.server.store.audit.list_audit()
    newest = next(entry for _, entry in entries if entry.event == "unlock" and entry.code == "ok")
    signed: Any = newest.details.get("signed")
    return None if signed is None else {name: signed[name] for name in ("signer", "label", "version")}


def _replaced(new: Signers, _old: Signers) -> Signers:
    return new


async def test_signed_values(unlimited: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its status and code, and a permit is by the statement that the vector names."""
    verifier = Verifier(unlimited, monkeypatch, "signed-values")
    await hold_policy(unlimited)
    await verifier.enroll("ecc256:ecdsa-sha256", POLICY["name"])
    found, wanted = {}, {}
    for vector in document("signed-values")["vectors"]:
        entry = Author.operator("tester").entry(unlimited.clock.now(), "policy signer trust", None, {})
        trusts = partial(_replaced, trusted(vector["trusted"]))
        await unlimited.store.policies.change_signers(POLICY["name"], trusts, entry)
        answer = await outcome(verifier, vector)
        found[vector["name"]] = (*answer, await vouched(verifier, vector))
        wanted[vector["name"]] = (vector["status"], vector["code"], vector["signed"])
    assert found == wanted
    assert len(found) > 70
