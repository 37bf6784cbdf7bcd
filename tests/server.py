"""A whole server in the test's process, composed as ``serve`` composes it, with real HTTP on loopback; only the clock is fake."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestClient
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.config import Settings
from tang_attest.protocol.challenge import announce_digest, unlock_digest
from tang_attest.protocol.coverage import ENFORCED
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.compose import World, opened
from tang_attest.server.console.services import console_services
from tang_attest.server.initialize import initialize
from tang_attest.server.site import compose_site
from tang_attest.service.enrollment.tokens import TokenTerms
from tang_attest.service.rounds.polls import Polls
from tang_attest.store import SqlStore
from tang_attest.web.app import make_app
from tang_attest.web.gate.limits import Limiter, RequestLimits
from tang_attest.web.runner import handling, server_of
from tests.attester import Attester, members
from tests.conformance.registered import check_registered
from tests.fakes import FakeClock, RealRandomness
from tests.registry import Installations

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


class _Listener(RawTestServer):
    """aiohttp's server for tests, over the server that ``serve`` makes."""

    async def _make_runner(self, debug: bool = True, **options: Any) -> web.ServerRunner:
        return web.ServerRunner(server_of(self._handler, debug=debug, **options))


class Server:
    """Started with ``async with``; everything it made is under *directory*.

    Servers that share *installations* share their secret and their signing key; others have their own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        plain_tang: bool = False,
        endpoint: str = "",
        limits: RequestLimits | None = None,
        tls: ssl.SSLContext | None = None,
        server_tpm: str | None = None,
        database: str | None = None,
        installations: Installations | None = None,
    ) -> None:
        self._installations = installations
        self.settings = Settings(
            state=directory,
            database=database,
            plain_tang=plain_tang,
            endpoint=endpoint,
            server_tpm=server_tpm,
            admin_api=True,
            console_url="https://console.test",
            metrics_listen="127.0.0.1:0",
        )
        self.directory, self.endpoint, self.tls = directory, endpoint, tls
        #: Certificate of a client, with *tls*.
        self.client_tls: ssl.SSLContext | None = None
        self.limiter, self.clock, self.polls = Limiter(limits), FakeClock(), Polls()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def _start(self, stack: AsyncExitStack) -> None:
        """As ``init`` and a worker of ``serve`` do, but for sockets and periodic work."""
        world = World(clock=self.clock, random=RealRandomness(), operator="tester", hold_s=5, keys_last_s=0)
        make = self._installations.make if self._installations else initialize
        self.thp = await make(self.settings, world)
        installation = await stack.enter_async_context(opened(self.settings, world))
        served = compose_site(installation, polls=self.polls, limiter=self.limiter)
        self.installation, self.site = installation, served.site
        assert isinstance(installation.store, SqlStore)
        self.store, self.secret, self.private_keys = (
            installation.store,
            installation.secret,
            installation.private_keys,
        )
        self.tokens, self.devices = installation.tokens, installation.devices
        self.ek_roots, self.conditions = installation.ek_roots, installation.conditions
        self.registered_eks = installation.registered_eks
        self.reference_values = installation.reference_values
        self.signers = installation.signers
        self.admin_tokens, self.keys = installation.admin_tokens, served.keys
        self.operators, self.console = installation.operators, console_services(installation)
        self.verify, self.watching = served.attestation.verify, served.watching
        self.refusals = served.refusals
        listener = _Listener(make_app(self.site), scheme="https" if self.tls else "http")
        await listener.start_server(ssl=self.tls, **handling(self.limiter.limits))
        self.client: TestClient[Any, Any] = await stack.enter_async_context(TestClient(listener))

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def request(self, method: str, target: str, **options: Any) -> Answer:
        """Any request."""
        if self.client_tls is not None:
            options["ssl"] = self.client_tls
        async with self.client.request(method, target, allow_redirects=False, **options) as response:
            is_json = "json" in response.content_type
            body = await response.json(content_type=None) if is_json else await response.read()
            check_registered(
                str(target).removeprefix(self.endpoint), response.status, response.content_type, body
            )
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
            # Most tests are about something else than what their few PCRs cover.
            "accepted_uncovered": ENFORCED,
        }
        text, _ = await self.tokens.create(TokenTerms(**(defaults | terms)))
        return text

    async def begin(self, attester: Attester, name: str, token: str | None, **changes: Any) -> Answer:
        """The first request of an enrollment; *changes* replace members of its body."""
        body = {
            "name": name,
            **({} if token is None else {"token": token}),
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
