"""A busy server, and then a search for its secrets: in logs, process lists, answers, metrics, and the database."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.config import Settings
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import load_secret
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.store import KEY_LABEL, open_store
from tests.attester import Attester, members
from tests.cli.forked import command
from tests.cli.installation.test_serve import enroll, unlock
from tests.cli.serving import Serving, clean_environment, request, serving_started
from tests.tang.servers import keygen

LABELS = ("nonce", "seal", "session", "backup")
WEBHOOK_SECRET = b"a webhook secret of the operator"


def forms(secret: bytes) -> Iterator[bytes]:
    """*secret* as programs write bytes: raw, hex, base64 in its kinds, a number, a Python literal."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")
    yield str(int.from_bytes(secret, "big")).encode()
    yield repr(secret)[2:-1].encode()


class Search:
    """Looks for secrets, each known by a name."""

    def __init__(self) -> None:
        self._wanted: dict[bytes, str] = {}

    def add(self, name: str, secret: bytes) -> None:
        assert len(secret) >= 16, name  # shorter ones would be found by chance
        self._wanted |= dict.fromkeys(forms(secret), name)

    def __call__(self, where: str, data: bytes) -> list[str]:
        return sorted({f"{name} in {where}" for form, name in self._wanted.items() if form in data})


class Operator:
    """Types commands, and keeps what they print."""

    def __init__(self, directory: Path) -> None:
        self._state = directory / "state"
        self.heard = b""

    def __call__(self, *arguments: str | Path, fails: bool = False) -> str:
        """Return a command's output on stdout."""
        ended = subprocess.run(
            command("--state", self._state, *arguments),
            capture_output=True,
            check=False,
            env=clean_environment(),
        )
        assert (ended.returncode != 0) == fails, ended.stderr
        self.heard += ended.stderr
        return ended.stdout.decode()


def administer(port: int, token: str, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """A request to the admin API."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request(method, f"/admin/v1{path}", None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    answered = response.status, response.read()
    connection.close()
    return answered


def processes(server: Serving) -> bytes:
    """The command lines of all processes, and the environments of the server's."""
    found = b""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += (process / "cmdline").read_bytes()
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    assert children
    for pid in (str(server.process.pid), *children):
        found += Path(f"/proc/{pid}/environ").read_bytes()
    return found


async def private_keys(state: Path, search: Search) -> int:
    """Add the scalar of every key in the database; their number."""
    secret = load_secret(state)
    store, sealed = (
        await open_store(Settings(state=state).database_url, secret.derive(KEY_LABEL)),
        EncryptedKeys(secret),
    )
    keys = [*await store.keys.server_keys()]
    for device in await store.devices.list_devices():
        for kid in device.kids:
            bound = await store.decisions.find_key(kid)
            assert bound is not None
            keys.append(bound.key)
    for key in keys:
        private = sealed._private_key(key, key.use)
        size = (private.curve.key_size + 7) // 8
        search.add(f"{key.use} key", private.private_numbers().private_value.to_bytes(size, "big"))
        search.add(
            f"{key.use} key as PKCS 8",
            private.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
    await store.close()
    return len(keys)


@pytest.mark.slow
def test_no_secret_is_anywhere(tmp_path: Path) -> None:
    """Enrollment, unlocks, refusals, tokens good and bad, plain Tang, malformed requests, a reload, every listing."""
    state, search, operator = tmp_path / "state", Search(), Operator(tmp_path)
    operator("init")
    for name in ("tang", "imported"):
        (tmp_path / name).mkdir()
        keygen(tmp_path / name)
    operator("keys", "import", tmp_path / "imported")
    (tmp_path / "webhook").write_bytes(WEBHOOK_SECRET)
    (tmp_path / "webhook").chmod(0o400)
    flags: list[str | Path] = [
        *("--plain-tang", "--tang-dir", tmp_path / "tang", "--admin-api"),
        *("--webhook-secret", tmp_path / "webhook", "--metrics-listen", "127.0.0.1:0"),
        *("--workers", "2", "--log-format", "json", "--log-level", "debug"),
    ]
    token = operator("token", "create", "--name", "pi-b", "--record", "--allow-unverified-ek").strip()
    unused = operator("token", "create", "--name", "pi-c", "--record").strip()
    admin = operator("admin-token", "create", "ci", "--scope", "read", "--scope", "approve").strip()
    answers = b""
    with serving_started(tmp_path, *flags) as server:
        machine, exchanged = Attester(), list[str]()
        kid = enroll(server.port, machine, token, exchanged)
        assert unlock(server.port, machine, kid, exchanged)[0] == 200
        machine.extend(4, b"another kernel")
        refused: list[Any] = [unlock(server.port, machine, kid, exchanged)]
        assert refused[0][0] == 403
        for target, body in (
            ("/attest/enroll", {"name": "pi-c", "token": token, "ak": "AAAA", "ek": "AAAA"}),
            ("/attest/enroll", {"name": "pi-x", "token": unused, "ak": "AAAA", "ek": "AAAA"}),
            ("/attest/enroll/finish", {"session": exchanged[0], "proof": "00" * 32}),
            (f"/rec/{kid}", b"\xff not json"),
            (f"/rec/{kid}", b"{" * 300_000),
            (f"/attest/announce/{kid}", {"nonce": exchanged[3]}),
            (f"/attest/agent/{kid}", {"ticket": "x"}),
        ):
            refused.append(request(server.port, "POST", target, body))
            assert refused[-1][0] in (200, 400, 403, 413), refused[-1]
        plain = next(path for path in (tmp_path / "tang").glob("*.jwk") if '"ECMR"' in path.read_text())
        x = dict(members(ec.generate_private_key(ec.SECP521R1())))
        assert request(server.port, "POST", f"/rec/{plain.stem}", {**x, "alg": "ECMR"})[0] == 200
        for path in ("/devices", "/audit", "/observations", "/policies", "/nothing"):
            answers += administer(server.port, admin, "GET", path)[1]
        answers += administer(
            server.port, admin[:-1] + ("A" if admin[-1] != "A" else "B"), "GET", "/devices"
        )[1]
        answers += administer(server.port, token, "GET", "/devices")[1]
        for port in server.listening()["metrics"]:
            answers += request(port, "GET", "/metrics")[1]
        server.process.send_signal(signal.SIGHUP)
        for line in (
            *("token list --json", "admin-token list --json", "keys list --json", "device list --json"),
            *("device show pi-b", "audit --json", "policy show pi-b", "observation list", "db status"),
            "doctor --json",
        ):
            answers += operator(*line.split()).encode()
        operator("device", "show", "nobody", fails=True)
        seen = processes(server)
        for name in ("tang-attest.db", "tang-attest.db-wal"):
            (tmp_path / f"running-{name}").write_bytes((state / name).read_bytes())
        assert server.stop() == 0
    operator("backup", tmp_path / "backup")

    secret = load_secret(state)
    search.add("key-encryption key", base64.urlsafe_b64decode(secret.text()))
    for label in LABELS:
        search.add(f"derived key {label}", secret.derive(label))
    for name, text in (("used token", token), ("unused token", unused), ("admin token", admin)):
        search.add(name, unb64u(text))
        search.add(name, text.encode())
    search.add("webhook secret", WEBHOOK_SECRET)
    search.add("activation secret", unb64u(exchanged[4]))
    for file in tmp_path.glob("*/*.jwk"):
        search.add("key of the Tang directory", unb64u(json.loads(file.read_text())["d"]))
    assert asyncio.run(private_keys(state, search)) == 4

    # That it finds what is there, in the forms in which it is there.
    assert search("the kek's file", (state / "kek").read_bytes()) == ["key-encryption key in the kek's file"]
    assert search("a directory", plain.read_bytes()) == ["key of the Tang directory in a directory"]
    assert search("a literal", repr(secret.derive("nonce")).encode()) == ["derived key nonce in a literal"]

    places = {
        "the log": server.log.read_bytes(),
        "process lists": seen,
        "answers": answers + json.dumps(refused, default=repr).encode(),
        "messages": operator.heard,
        "a backup": (tmp_path / "backup").read_bytes(),
        **{path.name: path.read_bytes() for path in tmp_path.glob("running-*")},
        "the database": (state / "tang-attest.db").read_bytes(),
    }
    assert all(len(data) > 200 for data in places.values()), {
        name: len(data) for name, data in places.items()
    }
    assert [leak for where, data in places.items() for leak in search(where, data)] == []
