"""Duties of a client that enrolls and binds: sections 4 and 5."""

from __future__ import annotations

import secrets
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from ..primitives.curve import CURVES
from ..primitives.encoding import b64u, unb64u
from ..primitives.jose import SigningKey, advertise, decrypt_jwe, derive_cek, read_header
from ..primitives.texts import activation_proof, enroll_data
from ..report import PROTOCOL, Group, NotTestedError, collect, expect
from ..tpm.credential import make_credential
from ..tpm.structures import ReadKey, read_public
from .exchange import PLAINTEXT, Disk, judge_evidence
from .played import Seen, answer, problem
from .unlocking import Outcome, Tested

DUTIES: Group[Tested] = []

_SELECTION: Final = "sha256:0,2,4,7,15"
_P521: Final = CURVES["P-521"]


def _signer() -> SigningKey:
    return SigningKey(_P521, secrets.randbelow(_P521.order - 1) + 1)


@dataclass
class EnrollingServer:
    """A server that enrolls one machine; its functions may be replaced, each to misbehave in one way.

    *advertised* makes the server's advertisement, *device_advertised* that of the device.  *faults* are sentences.
    """

    signer: SigningKey = field(default_factory=_signer)
    disk: Disk = field(default_factory=Disk)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    _: KW_ONLY
    advertised: Callable[[EnrollingServer], Any] | None = None
    device_advertised: Callable[[EnrollingServer], Any] | None = None
    lose_first_finish: bool = False
    faults: list[str] = field(default_factory=list)
    finishes: list[bytes] = field(default_factory=list)
    token_seen: bool = False
    name: str = ""
    ak: ReadKey | None = None
    secret: bytes = b""
    nonce: str = ""

    def __call__(self, seen: Seen) -> bytes:
        """Answer a request."""
        self.token_seen |= self.token.encode() in seen.body
        if seen.method == "GET" and seen.path in {"/adv", f"/adv/{self.signer.thumbprint}"}:
            made = (
                self.advertised(self) if self.advertised else advertise([self.signer.public], [self.signer])
            )
            return answer(200, made, "application/jose+json")
        if seen.method == "GET" and seen.path.startswith("/attest/adv/"):
            return answer(200, self.device_advertisement(), "application/jose+json")
        routes = {"/attest/enroll": self._begin, "/attest/enroll/finish": self._finish}
        if seen.method == "POST" and seen.path in routes:
            return routes[seen.path](seen)
        return problem(404, "not-found")

    def device_advertisement(self) -> Any:
        """Return the JWS of section 5."""
        if self.device_advertised:
            return self.device_advertised(self)
        return advertise([self.signer.public, self.disk.exchange_key()], [self.signer], **self.members())

    def members(self) -> dict[str, Any]:
        """Return the further members of a device's advertisement."""
        return {
            "ak_name": self.ak.name.hex() if self.ak else "",
            "cap_pcr": 15,
            "versions": ["1.1", PROTOCOL],
        }

    def _begin(self, seen: Seen) -> bytes:
        body = seen.json
        if body.get("token") != self.token:
            return problem(403, "token-invalid")
        self.name, self.ak = body["name"], read_public(unb64u(body["ak"]))
        ek = read_public(unb64u(body["ek"]))
        self.secret, self.nonce = secrets.token_bytes(32), secrets.token_urlsafe(33)
        ephemeral = (
            ec.generate_private_key(ek.key.curve) if isinstance(ek.key, ec.EllipticCurvePublicKey) else None
        )
        seed = secrets.token_bytes(48 if ek.area.name_hash == "sha384" else 32)
        blob, encrypted, _ = make_credential(
            ek.area, ek.key, self.ak.name, self.secret, seed=seed, ephemeral=ephemeral
        )
        return answer(200, {
            "session": "s" * 40, "credential_blob": b64u(blob), "encrypted_secret": b64u(encrypted),
            "nonce": self.nonce, "selection": _SELECTION, "expires_in": 300, "cap_pcr": 15, "versions": ["1.1", PROTOCOL],
        })  # fmt: skip

    def _finish(self, seen: Seen) -> bytes:
        self.finishes.append(seen.body)
        if self.lose_first_finish and len(self.finishes) == 1:
            return b""
        body, proof = seen.json, activation_proof(self.nonce, self.secret)
        if body.get("session") != "s" * 40:
            self.faults.append("the session is another one")
        if body.get("proof") != proof:
            self.faults.append("the proof is not that of the credential's secret")
        assert self.ak is not None  # noqa: S101 - the first request came before
        judge_evidence(self.ak, body, enroll_data(self.nonce, self.name, proof), _SELECTION, self.faults)
        return answer(201, {
            "name": self.name, "kid": self.disk.kid, "policy": self.name, "selection": _SELECTION, "cap_pcr": 15,
            "ek_verified": False, "learning": False, "coverage": None,
            "advertisement": self.device_advertisement(), "versions": ["1.1", PROTOCOL],
        })  # fmt: skip


def bind(world: Tested, server: EnrollingServer, thp: str = "") -> Outcome:
    """Run the client's bind against *server*, with a name and an address of their own."""
    if not world.bind:
        raise NotTestedError("--bind names the command that enrolls and binds")
    world.trials += 1
    address = f"bind{world.trials}"
    places = {
        "{url}": f"{world.played.url}/{address}",
        "{token}": server.token,
        "{thp}": thp or server.signer.thumbprint,
        "{name}": f"conformance-{world.trials}-{secrets.token_hex(3)}",
    }
    command = shlex.split(world.bind)
    for place, value in places.items():
        command = [word.replace(place, value) for word in command]
    world.played.behaviors = {address: server}
    world.played.seen.clear()
    try:
        done = subprocess.run(
            command, input=PLAINTEXT, capture_output=True, timeout=world.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(-1, b"", f"no end within {world.timeout:.0f} s", list(world.played.seen))
    return Outcome(
        done.returncode, done.stdout, done.stderr.decode(errors="replace"), list(world.played.seen)
    )


def _bound(outcome: Outcome, server: EnrollingServer) -> None:
    """Expect a JWE for the key of *server*."""
    expect(outcome.status == 0, f"it does not bind: status {outcome.status}, {outcome.said.strip()[-200:]}")
    expect(not server.faults, "; ".join(server.faults))
    header = read_header(outcome.stdout.decode().strip())
    expect(header.get("alg") == "ECDH-ES" and header.get("enc") == "A256GCM", "the algorithms are others")
    expect(header.get("kid") == server.disk.kid, "kid is not the thumbprint of the exchange key")
    attest = header["clevis"]["attest"]
    expect(isinstance(attest["url"], list), "url is no list")
    disk = server.disk
    epk = header["epk"]
    x, y = (int.from_bytes(unb64u(epk[name]), "big") for name in "xy")
    expect(disk.curve.contains((x, y)), "epk is not on the curve")
    cek = derive_cek(disk.curve, disk.curve.multiply(disk.s, (x, y)))
    expect(decrypt_jwe(outcome.stdout.decode().strip(), cek) == PLAINTEXT, "K does not open it")


def _refuses(world: Tested, server: EnrollingServer, reason: str, thp: str = "") -> None:
    outcome = bind(world, server, thp)
    expect(outcome.status != 0 and not outcome.stdout, f"it binds although {reason}")


@collect(DUTIES, "4", "it enrolls with proof and quote, and binds to the advertised key")
def _(world: Tested) -> None:
    server = EnrollingServer()
    _bound(bind(world, server), server)


@collect(DUTIES, "4", "the token is sent only after a trusted key has signed the server's advertisement")
def _(world: Tested) -> None:
    server, other = EnrollingServer(), _signer()
    _refuses(world, server, "the pinned thumbprint is another one", other.thumbprint)
    expect(not server.token_seen, "the token was sent to a server that is not trusted")


def _bad_signatures() -> dict[str, Callable[[EnrollingServer], Any]]:
    other = _signer()

    def made(server: EnrollingServer, keys: list[Any], signers: list[SigningKey], **header: Any) -> Any:
        return advertise(keys, signers, header=header, **server.members())

    def unsigned(server: EnrollingServer, alg: str) -> Any:
        jws = made(server, [server.signer.public, server.disk.exchange_key()], [server.signer], alg=alg)
        return jws | {"signature": "AAAA"}

    return {
        "a signing key in it has not signed": lambda it: made(it, [it.signer.public, other.public, it.disk.exchange_key()], [it.signer]),
        "the trusted key in it has not signed": lambda it: made(it, [it.signer.public, other.public, it.disk.exchange_key()], [other]),
        "another key has signed": lambda it: made(it, [other.public, it.disk.exchange_key()], [other]),
        "its alg is none": lambda it: unsigned(it, "none"),
        "its alg is not that of the key": lambda it: unsigned(it, "ES256"),
        "its cty is another": lambda it: made(it, [it.signer.public, it.disk.exchange_key()], [it.signer], cty="json"),
        "it has no signing key": lambda it: made(it, [it.disk.exchange_key()], [it.signer]),
        "its payload was changed": lambda it: made(it, [it.signer.public, it.disk.exchange_key()], [it.signer]) | {"payload": made(it, [it.signer.public, Disk().exchange_key()], [it.signer])["payload"]},
    }  # fmt: skip


@collect(DUTIES, "5", "an advertisement of the server that is not signed as section 5 wants it gets no token")
def _(world: Tested) -> None:
    for reason, made in _bad_signatures().items():
        server = EnrollingServer(advertised=made)
        _refuses(world, server, f"of the server's advertisement, {reason}")
        expect(not server.token_seen, f"the token was sent although, of the advertisement, {reason}")


@collect(DUTIES, "5", "an advertisement of the device that is not signed as section 5 wants it binds nothing")
def _(world: Tested) -> None:
    for reason, made in _bad_signatures().items():
        _refuses(world, EnrollingServer(device_advertised=made), f"of the device's advertisement, {reason}")


@collect(DUTIES, "5", "a key that answers to another AK binds nothing")
def _(world: Tested) -> None:
    for name in ("000b" + "00" * 32, None):

        def made(server: EnrollingServer, name: str | None = name) -> Any:
            more = {**server.members(), "ak_name": name}
            if name is None:
                del more["ak_name"]
            return advertise([server.signer.public, server.disk.exchange_key()], [server.signer], **more)

        _refuses(world, EnrollingServer(device_advertised=made), f"ak_name is {name}")


@collect(DUTIES, "4.2", "a lost 201 is asked for again, byte for byte")
def _(world: Tested) -> None:
    server = EnrollingServer(lose_first_finish=True)
    outcome = bind(world, server)
    if outcome.status != 0 and len(server.finishes) == 1:
        raise NotTestedError("it does not ask again by itself")
    expect(len(set(server.finishes)) == 1, "the request that was sent again is another one")
    _bound(outcome, server)


@collect(DUTIES, "5", "keys and members that it does not know are ignored")
def _(world: Tested) -> None:
    def made(server: EnrollingServer) -> Any:
        strange = {"kty": "OKP", "crv": "Ed448", "x": "AAAA", "use": "sig"}
        keys = [server.signer.public, strange, server.disk.exchange_key()]
        return advertise(keys, [server.signer], **server.members(), future={"a": 1})

    server = EnrollingServer(device_advertised=made)
    _bound(bind(world, server), server)
