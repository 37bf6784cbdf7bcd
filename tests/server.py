"""A whole server in the test's process: the real store, the real keys, real HTTP on loopback; only the clock is fake."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from aiohttp.test_utils import TestClient, TestServer
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.config import Settings
from tang_attest.keys.sealed import EncryptedKeys, SessionEncryption
from tang_attest.keys.secret import create_secret
from tang_attest.keys.server_tpm import ServerTpm
from tang_attest.protocol.challenge import announce_digest, unlock_digest
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.observing import observe
from tang_attest.service.admin.administration import Administration
from tang_attest.service.admin.tokens import AdminTokens
from tang_attest.service.audit.actors import Author
from tang_attest.service.audit.refusals import Refusals
from tang_attest.service.enrollment.enroll import Enroll
from tang_attest.service.machines.registry import DeviceAdministration, TokenTerms
from tang_attest.service.policies.announce import Announce
from tang_attest.service.policies.reference_values import ReferenceValues
from tang_attest.service.rounds.agents import Agents
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.rounds.sweep import Watching
from tang_attest.service.rounds.verify import RoundVerifier
from tang_attest.service.tang.server_keys import ServerKeys
from tang_attest.service.unlock.unlock import Unlock
from tang_attest.store import KEY_LABEL, open_store
from tang_attest.web.admin.routes import AdminRoutes
from tang_attest.web.app import Site, make_app
from tang_attest.web.attest_routes import AttestRoutes
from tang_attest.web.gate.limits import Limiter, RequestLimits
from tang_attest.web.runner import handling
from tests.attester import Attester, members
from tests.fakes import FakeClock, RealRandomness

SELECTION = "sha256:0,2,4,7"


@dataclass(frozen=True)
class Answer:
    """A response: status, body (JSON where it is), headers."""

    status: int
    body: Any
    headers: Any

    @property
    def code(self) -> str:
        """The problem's code, or ``ok``."""
        return self.body.get("code", "ok") if isinstance(self.body, dict) else "ok"


class Server:
    """Started with ``async with``; everything it made is under *directory*."""

    def __init__(
        self,
        directory: Path,
        *,
        plain_tang: bool = False,
        endpoint: str = "",
        limits: RequestLimits | None = None,
        tls: ssl.SSLContext | None = None,
        server_tpm: str | None = None,
    ) -> None:
        self.directory, self.plain_tang, self.endpoint, self.tls = directory, plain_tang, endpoint, tls
        #: What a client shows, with *tls*.
        self.client_tls: ssl.SSLContext | None = None
        self.limiter, self.server_tpm = Limiter(limits), server_tpm
        self.clock = FakeClock()

    async def __aenter__(self) -> Self:
        random = RealRandomness()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.secret = create_secret(self.directory)
        self.store = await open_store(
            Settings(state=self.directory).database_url, self.secret.derive(KEY_LABEL), create=True
        )
        self.sealed = EncryptedKeys(self.secret, ServerTpm(self.server_tpm))
        self.registry = DeviceAdministration(self.store, self.sealed, self.clock, random, "tester")
        self.reference_values = ReferenceValues(self.store, self.clock, Author.operator("tester"))
        self.keys = ServerKeys(self.store, self.sealed, self.clock, "server", open_keys=self.plain_tang)
        self.thp = await self.keys.create_signing_key()
        nonce_key = self.secret.derive("nonce")
        self.executor = ThreadPoolExecutor(2)
        self.polls = Polls()
        self.verify = RoundVerifier(self.store, self.clock, random, nonce_key, 120)
        self.watching = Watching(self.store, self.verify, self.polls, self.clock)
        self.refusals = Refusals(self.store, self.clock)
        routes = AttestRoutes(
            Unlock(self.store, self.sealed, self.clock, random, nonce_key, 120, self.executor, self.refusals),
            Enroll(
                self.store,
                self.sealed,
                SessionEncryption(self.secret),
                self.clock,
                random,
                nonce_key,
                300,
                refusals=self.refusals,
            ),
            Announce(self.store, self.clock, random, nonce_key, 120, self.refusals),
            Agents(self.store, self.verify, self.polls, self.clock, random, nonce_key, hold_s=5),
            self.keys,
        )
        plain = self.keys if self.plain_tang else None
        self.admin_tokens = AdminTokens(self.store, self.clock, random, Author.operator("tester"))
        admin = AdminRoutes(self.admin_tokens, Administration(self.store, self.clock, random), self.endpoint)
        settings = Settings(state=self.directory, metrics_listen="127.0.0.1:0")
        health, metrics = observe(
            settings, self.store, self.keys, self.clock, self.limiter, self.polls, self.refusals
        )
        self.site = Site(
            routes, self.keys, plain, self.executor, self.endpoint, admin, self.limiter, health, metrics
        )
        listener = TestServer(make_app(self.site), scheme="https" if self.tls else "http")
        await listener.start_server(ssl=self.tls, **handling(self.limiter.limits))
        self.client = TestClient(listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        self.executor.shutdown()
        self.sealed.tpm.shutdown()
        await self.store.close()

    async def request(self, method: str, target: str, **options: Any) -> Answer:
        """Any request."""
        if self.client_tls is not None:
            options["ssl"] = self.client_tls
        async with self.client.request(method, target, allow_redirects=False, **options) as response:
            is_json = "json" in response.content_type
            body = await response.json(content_type=None) if is_json else await response.read()
            return Answer(response.status, body, response.headers)

    async def post(self, target: str, body: Any) -> Answer:
        """POST of a JSON value, or of bytes as they are."""
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        return await self.request("POST", target, **data)

    # --- enrollment ---

    async def token(self, **terms: Any) -> str:
        """A token; *terms* are fields of TokenTerms."""
        defaults: dict[str, Any] = {
            "name": None,
            "policy": None,
            "record": terms.get("policy") is None,
            "selection": Selection.parse(SELECTION),
            "cap_pcr": 15,
            "allow_unverified_ek": True,
            "force": False,
            "valid_for": timedelta(hours=1),
            "learn_for": timedelta(hours=1),
        }
        text, _ = await self.registry.create_token(TokenTerms(**(defaults | terms)))
        return text

    async def begin(self, attester: Attester, name: str, token: str, **changes: Any) -> Answer:
        """The first request of an enrollment; *changes* replace members of its body."""
        body = {
            "name": name,
            "token": token,
            "ak": b64u(attester.ak_public),
            "ek": b64u(attester.ek_public),
        }
        return await self.post("/attest/enroll", body | changes)

    async def finish(self, attester: Attester, name: str, begun: Answer, **changes: Any) -> Answer:
        """The second request; *changes* are ``secret``, ``proof``, ``binding`` or members of its body."""
        answer = begun.body
        blob, encrypted = (unb64u(answer[member]) for member in ("credential_blob", "encrypted_secret"))
        secret = changes.pop("secret", None) or attester.activate(
            blob, encrypted, parse_ak(attester.ak_public).name
        )
        proof = changes.pop("proof", None) or activation_proof(answer["nonce"], secret)
        binding = changes.pop("binding", None) or enrollment_digest(answer["nonce"], name, proof)
        evidence = attester.evidence("", binding, answer["selection"])
        del evidence["nonce"]
        body = {"session": answer["session"], "proof": proof, **evidence}
        return await self.post("/attest/enroll/finish", body | changes)

    async def enroll(self, attester: Attester, name: str = "pi-b", **terms: Any) -> str:
        """A whole enrollment; the device's kid."""
        begun = await self.begin(attester, name, await self.token(**terms))
        assert begun.status == 200, begun
        done = await self.finish(attester, name, begun)
        assert done.status == 201, done
        kid: str = done.body["kid"]
        return kid

    # --- unlock ---

    async def challenge(self, kid: str, x: dict[str, str] | None = None) -> dict[str, Any]:
        """A challenge for *kid*."""
        answer = await self.post(f"/rec/{kid}", x or dict(members(new_x())))
        assert answer.status == 401, answer
        challenge: dict[str, Any] = answer.body["challenge"]
        return challenge

    async def unlock(self, attester: Attester, kid: str, **changes: Any) -> Answer:
        """Challenge and evidence; *changes* replace steps (see :func:`evidence`)."""
        x = changes.pop("x", None) or dict(members(new_x()))
        challenge = changes.pop("challenge", None) or await self.challenge(kid)
        return await self.post(
            f"/rec/{kid}", x | {"attest": evidence(attester, kid, x, challenge, **changes)}
        )


def announcement(
    attester: Attester,
    kid: str,
    challenge: dict[str, Any],
    values: bytes,
    label: str = "next",
    **changes: Any,
) -> dict[str, Any]:
    """The body that announces *values*; *changes* replace its members."""
    binding = announce_digest(challenge["nonce"], kid, values, label)
    quoted = attester.evidence(challenge["nonce"], binding, challenge["selection"])
    return {**quoted, "values": b64u(values), "label": label} | changes


def evidence(
    attester: Attester, kid: str, x: dict[str, str], challenge: dict[str, Any], **changes: Any
) -> dict[str, str]:
    """Member ``attest`` for *x*; *changes* are those of :meth:`Attester.attest`, ``selection`` and ``binding``."""
    binding = changes.pop("binding", None) or unlock_digest(challenge["nonce"], kid, thumbprint(x))
    selection = changes.pop("selection", challenge["selection"])
    return attester.evidence(challenge["nonce"], binding, selection, **changes)


def new_x(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """A client's random X, with its private part."""
    return ec.generate_private_key(curve or ec.SECP521R1())


def product_x(x: ec.EllipticCurvePrivateKey, server: ExchangeKey) -> bytes:
    """The x-coordinate of x·S, which Y has to have."""
    return x.exchange(ec.ECDH(), server.public.public_key())
