"""``tang-attest serve``, as a process."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.service.tang.recent_keys import LIFE_S
from tests.attester import Attester, members
from tests.cli import forked
from tests.cli.forked import command
from tests.cli.serving import (
    PATIENCE_S,
    answer,
    clean_environment,
    head,
    program,
    request,
    serving,
    serving_started,
)
from tests.cli.transcript import environment, run
from tests.ports import free_port
from tests.tang.servers import keygen

UNKNOWN = "A" * 43


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with an initialized state."""
    with environment():
        assert run("--state", str(tmp_path / "state"), "init")[2] == 0
    return tmp_path


# --- starting and stopping ---------------------------------------------------------------------------------------


def test_serves_until_sigterm(directory: Path) -> None:
    """The port file holds the port once the server answers; SIGTERM ends it cleanly."""
    with serving_started(directory) as server:
        status, advertisement = request(server.port, "GET", "/adv")
        assert (status, sorted(advertisement)) == (200, ["payload", "protected", "signature"])
        assert request(server.port, "POST", f"/rec/{UNKNOWN}", {})[0] == 404
        assert server.stop() == 0  # it has a minute, because the machine may be busy


def test_sigint_is_a_clean_end_too(directory: Path) -> None:
    """Ctrl-C in a terminal gives no traceback."""
    with serving(directory) as server:
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_request_under_way_is_answered(directory: Path) -> None:
    """SIGTERM while a body is on its way: the request is read to its end and answered, nothing new is taken."""
    with serving(directory) as server:
        body = json.dumps({"kty": "EC"}).encode()
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
            expecting = head("POST", f"/rec/{UNKNOWN}", len(body))[:-2] + b"Expect: 100-continue\r\n\r\n"
            connection.sendall(expecting)
            invitation = b"HTTP/1.1 100 Continue\r\n\r\n"
            assert connection.recv(len(invitation), socket.MSG_WAITALL) == invitation
            connection.sendall(body[:5])
            server.process.send_signal(signal.SIGTERM)
            until_nobody_listens(server.port)
            connection.sendall(body[5:])
            status, problem = answer(connection)
        assert (status, problem["code"]) == (404, "key-unknown")
        assert server.process.wait(PATIENCE_S) == 0


def until_nobody_listens(port: int) -> None:
    """Wait until connections are refused; one that is taken meanwhile says nothing and goes."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
        except ConnectionError:
            return
        assert time.monotonic() < deadline, "somebody listens still"


def test_an_idle_client_does_not_hold_it_up(directory: Path) -> None:
    """A client that keeps its connection, or sends half a request and no more, delays the end by seconds only."""
    with (
        serving(directory) as server,
        socket.create_connection(("127.0.0.1", server.port)) as idle,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        idle.sendall(b"GET /adv HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.sendall(head("POST", f"/rec/{UNKNOWN}", 10) + b"{")
        time.sleep(0.3)
        assert server.stop() == 0  # not the minutes that such a client could keep it


def test_a_port_that_is_taken(directory: Path) -> None:
    """Two servers on one port: the second says which port, and the first goes on."""
    with serving(directory) as server:
        second = program(
            "--state", directory / "state", "serve", "--host", "127.0.0.1", "--port", str(server.port)
        )
        assert second.returncode == 1
        assert f"settings host and port: cannot listen on 127.0.0.1 port {server.port}:" in second.stderr
        assert "ddress already in use" in second.stderr
        assert request(server.port, "GET", "/adv")[0] == 200


# --- settings ----------------------------------------------------------------------------------------------------


def self_signed(directory: Path, name: str, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """A certificate for localhost and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption: Any = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return paths


@pytest.fixture
def files(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files that settings may name, in the current directory."""
    self_signed(directory, "one")
    self_signed(directory, "two")
    self_signed(directory, "locked", b"passphrase")
    (directory / "garbage").write_bytes(b"\xff garbage")
    crl = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    (directory / "broken.crl").write_bytes((directory / "one.crt").read_bytes() + crl)
    (directory / "unknown.toml").write_text("prot = 80\n")
    (directory / "nested.toml").write_text("[serve]\nport = 80\n")
    (directory / "broken.toml").write_text("port = \n")
    (directory / "latin.toml").write_bytes(b'endpoint = "/\xe4"\n')
    (directory / "wrong.toml").write_text('port = "many"\n')
    (directory / "folder").mkdir()
    monkeypatch.chdir(directory)
    with environment():
        yield directory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port 70000", "setting port: it should be less than or equal to 65535"),
        ("--port -1", "setting port: it should be greater than or equal to 0"),
        ("--host 192.0.2.1 --port 0", "settings host and port: cannot listen on 192.0.2.1 port 0"),
        ("--host no.such.host.invalid --port 0", "settings host and port: cannot listen on no.such.host"),
        ("--port 0 --port-file nowhere/port", "setting port_file: nowhere/port: No such file or directory"),
        ("--port 0 --port-file folder", "setting port_file: folder: Is a directory"),
        ("--endpoint ta?ng", "setting endpoint: it is a path such as /tang"),
        ("--endpoint a//b", "setting endpoint: it is a path such as /tang"),
        ("--tls-certificate one.crt", "tls_certificate and tls_key are given together or not at all"),
        ("--tls-key one.key", "tls_certificate and tls_key are given together or not at all"),
        ("--tls-certificate no.crt --tls-key one.key", "setting tls_certificate: no.crt: No such file"),
        ("--tls-certificate folder --tls-key one.key", "setting tls_certificate: folder: Is a directory"),
        ("--tls-certificate garbage --tls-key one.key", "setting tls_certificate: garbage is not a PEM cert"),
        ("--tls-certificate one.key --tls-key one.key", "setting tls_certificate: one.key is not a PEM cert"),
        ("--tls-certificate one.crt --tls-key no.key", "setting tls_key: no.key: No such file or directory"),
        ("--tls-certificate one.crt --tls-key garbage", "setting tls_key: garbage is not a PEM key"),
        ("--tls-certificate one.crt --tls-key one.crt", "setting tls_key: one.crt is not a PEM key"),
        ("--tls-certificate one.crt --tls-key locked.key", "setting tls_key: locked.key needs a passphrase"),
        ("--tls-certificate one.crt --tls-key two.key", "setting tls_key: it is not the key of tls_certificate"),
        ("--tls-client-ca one.crt", "tls_client_ca needs tls_certificate: without TLS nobody can show"),
        ("--tls-certificate one.crt --tls-key one.key --tls-client-ca no.crt", "setting tls_client_ca: no.crt: No such file or directory"),
        ("--tls-certificate one.crt --tls-key one.key --tls-client-ca garbage", "setting tls_client_ca: garbage is not a PEM certificate"),
        ("--tls-certificate one.crt --tls-key one.key --tls-client-ca one.key", "setting tls_client_ca: one.key is not a PEM certificate"),
        ("--tls-certificate one.crt --tls-key one.key --tls-client-ca broken.crl", "setting tls_client_ca: broken.crl"),
        ("--tang-dir folder", "tang_dir needs plain_tang: without it no key answers without evidence"),
        ("--plain-tang --tang-dir nowhere", "setting tang_dir: nowhere is not a directory"),
        ("--plain-tang --tang-dir garbage", "setting tang_dir: garbage is not a directory"),
        ("--challenge-ttl 1", "setting challenge_ttl: it should be greater than or equal to 5"),
        ("--enroll-ttl 99999", "setting enroll_ttl: it should be less than or equal to 3600"),
        ("--log-level loud", "setting log_level: it should be 'debug', 'info', 'warning' or 'error'"),
        ("--log-format xml", "setting log_format: it should be 'console' or 'json'"),
        ("--config unknown.toml", "setting prot: there is no such setting"),
        ("--config nested.toml", "setting serve: there is no such setting"),
        ("--config broken.toml", "file broken.toml is not TOML: Invalid value (at line 1"),
        ("--config latin.toml", "file latin.toml is not TOML"),
        ("--config wrong.toml", "setting port: it should be a valid integer"),
        ("--config nowhere.toml", "file nowhere.toml cannot be read: No such file or directory"),
        ("--config folder", "file folder cannot be read: Is a directory"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("files")
def test_a_wrong_setting_stops_it(arguments: str, message: str) -> None:
    """It says which setting is wrong and in what, in one line and a hint, and does not start."""
    # The socket comes before the certificates, and another test may have the default port.
    port = [] if "--port" in arguments or "--config" in arguments else ["--port", "0"]
    stdout, stderr, code = run("serve", *port, *arguments.split())
    assert (stdout, code) == ("", 1)
    lines = stderr.splitlines()
    assert lines[0].startswith(f"tang-attest: {message}")
    assert len(lines) == 2
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "the database setting is not a URL"),
        ("mysql://localhost/x", "the database is 'mysql'; SQLite and PostgreSQL are supported"),
        ("sqlite:///nowhere.db", "there is no database at nowhere.db"),
    ],
)
def test_a_wrong_database_stops_it(files: Path, url: str, message: str) -> None:
    """A worker finds out; it is told once, and is not tried again."""
    ended = program("--state", files / "state", "serve", "--port", "0", "--workers", "1", "--database", url)
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if line.startswith("tang-attest: ")]
    assert told
    assert all(line.startswith(f"tang-attest: {message}") for line in told)


def test_the_secret_of_another_state_stops_it(files: Path) -> None:
    """A key made under it could never be opened again."""
    with environment():
        assert run("--state", str(files / "other"), "init")[2] == 0
    (files / "other" / "kek").replace(files / "state" / "kek")
    ended = program("--state", files / "state", "serve", "--port", "0", "--workers", "1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("tang-attest: setting state: its key-encryption key is not the one")


def test_a_password_is_not_repeated(files: Path) -> None:
    """A database URL that is wrong may hold a password."""
    (files / "secret.toml").write_text('database = "hunter2@/x"\nport = true\n')
    for arguments in (["--database", "post gres://tang:hunter2@db/tang"], ["--config", "secret.toml"]):
        _, stderr, code = run("serve", *arguments)
        assert code == 1
        assert "hunter2" not in stderr


def test_flag_over_environment_over_file(directory: Path) -> None:
    """The file says one endpoint, the environment another, the flag a third."""
    file = directory / "settings.toml"
    file.write_text('endpoint = "/file"\nlog_format = "json"\nchallenge_ttl = 77\n')
    with serving(directory, "--config", file) as server:
        assert request(server.port, "GET", "/file/adv")[0] == 200
    with serving(directory, "--config", file, TANG_ATTEST_ENDPOINT="/environment") as server:
        assert request(server.port, "GET", "/environment/adv")[0] == 200
        assert request(server.port, "GET", "/file/adv")[0] == 404
    with serving(
        directory,
        "--endpoint",
        "/flag",
        TANG_ATTEST_CONFIG=str(file),
        TANG_ATTEST_ENDPOINT="/environment",
    ) as server:
        assert request(server.port, "GET", "/flag/adv")[0] == 200
        assert server.listening()


def test_settings_from_the_environment_alone(directory: Path) -> None:
    """A container sets nothing but variables; an empty one is as none."""
    port = free_port()
    with serving(
        directory,
        port="",
        TANG_ATTEST_PORT=str(port),
        TANG_ATTEST_ENDPOINT="",
        TANG_ATTEST_LOG_FORMAT="json",
        TANG_ATTEST_PLAIN_TANG="1",
    ) as server:
        assert server.port == port
        assert request(port, "GET", "/adv")[0] == 200
        first = server.listening()
        assert (first["port"], first["plain_tang"]) == (port, True)


def test_a_wrong_variable_is_named() -> None:
    """The message names the setting, wherever it came from."""
    done = program("serve", TANG_ATTEST_PORT="many")
    assert done.returncode == 2
    assert "'--port'" in done.stderr
    done = program("serve", TANG_ATTEST_LOG_LEVEL="loud")
    assert (done.returncode, done.stderr.splitlines()[0].split(":")[1]) == (1, " setting log_level")


def test_state_of_the_settings_file(directory: Path) -> None:
    """The file may name the state; --state wins."""
    (directory / "state").rename(directory / "elsewhere")
    file = directory / "settings.toml"
    file.write_text(
        f'state = "{directory}/elsewhere"\nhost = "127.0.0.1"\nport = 0\nworkers = 1\nport_file = "{directory}/p"\n'
    )
    missing = program("--state", directory / "state", "serve", "--config", file)
    assert (missing.returncode, "state-missing" in missing.stderr) == (1, True)
    process = forked.Popen(
        command("serve", "--config", file), stderr=subprocess.DEVNULL, env=clean_environment()
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (directory / "p").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


# --- what is served ----------------------------------------------------------------------------------------------


def test_https(directory: Path) -> None:
    """With a certificate and a key it speaks HTTPS, from TLS 1.2 on, and nothing else."""
    certificate, key = self_signed(directory, "one")
    context = ssl.create_default_context(cafile=str(certificate))
    with serving(
        directory, "--tls-certificate", certificate, "--tls-key", key, "--log-format", "json"
    ) as server:
        assert request(server.port, "GET", "/adv", tls=context)[0] == 200
        old = ssl.create_default_context(cafile=str(certificate))
        # Setting it is deprecated in Python, which is why nobody should still use it.
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            request(server.port, "GET", "/adv", tls=old)
        with pytest.raises((IndexError, OSError)):
            request(server.port, "GET", "/adv")
        assert request(server.port, "GET", "/adv", tls=context)[0] == 200
        assert server.stop() == 0
        assert server.listening()["https"] is True


def test_plain_tang_without_a_state(tmp_path: Path) -> None:
    """A drop-in tangd: the keys of a directory, and nothing of ours is needed or made."""
    (tmp_path / "tang").mkdir()
    keygen(tmp_path / "tang")
    before = sorted((tmp_path / "tang").iterdir())
    with serving(tmp_path, "--plain-tang", "--tang-dir", tmp_path / "tang") as server:
        status, advertisement = request(server.port, "GET", "/adv")
        keys = json.loads(unb64u(advertisement["payload"]))["keys"]
        exchange = next(key for key in keys if key["key_ops"] == ["deriveKey"])
        x = dict(members(ec.generate_private_key(ec.SECP521R1())))
        assert status == 200
        assert request(server.port, "POST", f"/rec/{thumbprint(exchange)}", x)[0] == 200
        # There is nothing attested here.
        assert request(server.port, "POST", "/attest/enroll", {})[0] == 404
        assert server.stop() == 0
    assert not (tmp_path / "state").exists()
    assert sorted((tmp_path / "tang").iterdir()) == before


def test_a_state_is_needed_otherwise(tmp_path: Path) -> None:
    """Without a state there is nothing to serve; plain Tang needs at least its directory."""
    for arguments in ([], ["--plain-tang"]):
        done = program("--state", tmp_path / "state", "serve", "--port", "0", *arguments)
        assert done.returncode == 1
        assert done.stderr == (
            f"tang-attest: there is no key-encryption key at {tmp_path}/state/kek (state-missing)\n"
            "hint: run 'tang-attest init' first\n"
        )


def test_imported_keys_answer_only_with_plain_tang(directory: Path) -> None:
    """An open key is advertised and answers when --plain-tang is on; else it is as if it were not there."""
    (directory / "tang").mkdir()
    keygen(directory / "tang", "SIG", "EXC")
    kid = thumbprint(json.loads((directory / "tang" / "EXC.jwk").read_text()))
    with environment():
        assert run("--state", str(directory / "state"), "keys", "import", str(directory / "tang"))[2] == 0
    x = dict(members(ec.generate_private_key(ec.SECP521R1())))
    with serving(directory) as server:
        assert request(server.port, "POST", f"/rec/{kid}", x)[0] == 404
        assert kid not in advertised(server.port)
    with serving(directory, "--plain-tang") as server:
        assert request(server.port, "POST", f"/rec/{kid}", x)[0] == 200
        assert kid in advertised(server.port)


def advertised(port: int) -> list[str]:
    """The thumbprints of what ``/adv`` holds."""
    _, advertisement = request(port, "GET", "/adv")
    return [thumbprint(key) for key in json.loads(unb64u(advertisement["payload"]))["keys"]]


# --- what is logged ----------------------------------------------------------------------------------------------


def test_logs_are_json_and_hold_no_secret(directory: Path) -> None:
    """A whole enrollment, an unlock, a refusal and nonsense: each leaves one JSON line, none a secret."""
    with environment():
        state = str(directory / "state")
        token = run("--state", state, "token", "create", "--record", "--allow-unverified-ek")[0].strip()
    machine, secrets = Attester(), [token]
    with serving(directory, "--log-format", "json", "--log-level", "debug") as server:
        kid = enroll(server.port, machine, token, secrets)
        assert unlock(server.port, machine, kid, secrets)[0] == 200
        machine.extend(7, b"other")
        assert unlock(server.port, machine, kid, secrets)[0] == 403
        assert (
            request(server.port, "POST", "/attest/enroll", {"name": "x", "token": token, "ak": 7})[0] == 400
        )
        assert request(server.port, "POST", "/attest/enroll", token.encode())[0] == 400
        # More body than was announced looks like another request; what it says must not be logged.
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
            connection.sendall(head("POST", "/attest/enroll", 2).replace(b"Connection: close\r\n", b""))
            connection.sendall(f'{{}}{{"token": "{token}"}} HTTP/1.1\r\n\r\n'.encode())
            time.sleep(0.3)
        for garbage in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", f"GET /adv {token}\r\n\r\n".encode()):
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(4096)
        assert server.stop() == 0
        records = server.records()
        text = server.log.read_text()
    assert [r["event"] for r in records if r["event"] not in ("audit-head", "signing-keys")][:2] == [
        "listening",
        "request",
    ]
    assert records[-1]["event"] == "stopped"
    requests = [(r.get("target"), r["status"], r["code"]) for r in records if r["event"] == "request"]
    assert requests[:6] == [
        ("/attest/enroll", 200, "ok"),
        ("/attest/enroll/finish", 201, "ok"),
        (f"/rec/{kid}", 401, "evidence-required"),
        (f"/rec/{kid}", 200, "ok"),
        (f"/rec/{kid}", 401, "evidence-required"),
        (f"/rec/{kid}", 403, "pcr-mismatch"),
    ]
    assert all({"timestamp", "level"} <= record.keys() for record in records)
    assert len(secrets) > 20
    assert [secret for secret in secrets if secret in text] == []


def enroll(port: int, machine: Attester, token: str, secrets: list[str]) -> str:
    """Enroll; adds to *secrets* what nobody but the two parties should see.  The kid."""
    body = {"name": "pi-b", "token": token, "ak": b64u(machine.ak_public), "ek": b64u(machine.ek_public)}
    status, begun = request(port, "POST", "/attest/enroll", body)
    assert status == 200, begun
    blob, encrypted = (unb64u(begun[member]) for member in ("credential_blob", "encrypted_secret"))
    secret = machine.activate(blob, encrypted, parse_ak(machine.ak_public).name)
    proof = activation_proof(begun["nonce"], secret)
    evidence = machine.evidence("", enrollment_digest(begun["nonce"], "pi-b", proof), begun["selection"])
    del evidence["nonce"]
    finish = {"session": begun["session"], "proof": proof, **evidence}
    status, done = request(port, "POST", "/attest/enroll/finish", finish)
    assert status == 201, done
    secrets += [begun["session"], begun["credential_blob"], begun["encrypted_secret"], begun["nonce"]]
    secrets += [b64u(secret), secret.hex(), proof, body["ak"], body["ek"], *evidence.values()]
    return str(done["kid"])


def unlock(port: int, machine: Attester, kid: str, secrets: list[str]) -> tuple[int, Any]:
    """Unlock; adds X, Y and the evidence to *secrets*."""
    x = dict(members(ec.generate_private_key(ec.SECP521R1())))
    status, problem = request(port, "POST", f"/rec/{kid}", x)
    assert status == 401
    nonce = problem["challenge"]["nonce"]
    binding = unlock_digest(nonce, kid, thumbprint(x))
    evidence = machine.evidence(nonce, binding, problem["challenge"]["selection"])
    status, reply = request(port, "POST", f"/rec/{kid}", x | {"attest": evidence})
    secrets += [x["x"], x["y"], *evidence.values()]
    secrets += [reply[member] for member in ("x", "y") if member in reply]
    return status, reply


def test_the_database_fails_while_serving(directory: Path) -> None:
    """Log lines of the store are JSON as well, and the server goes on answering."""
    with serving(directory, "--log-format", "json") as server:
        assert request(server.port, "GET", "/adv")[0] == 200
        for file in (directory / "state").glob("tang-attest.db*"):
            file.write_bytes(b"not a database any more, but long enough to be looked at" * 200)
        statuses = {request(server.port, "POST", f"/rec/{UNKNOWN}", {"kty": "EC"})[0] for _ in range(3)}
        assert statuses <= {404, 503}
        assert server.stop() == 0
        assert {record["level"] for record in server.records()} <= {"info", "warning", "error"}


def test_console_logs(directory: Path) -> None:
    """For eyes: no colors where nobody looks, a time and an event on each line."""
    with serving(directory) as server:
        request(server.port, "GET", "/adv")
        server.stop()
        lines = server.log.read_text().splitlines()
    events = [line.split("]")[1].split()[0] for line in lines]
    events.remove("audit-head")  # comes within a second, or at the end
    assert sorted(events[:2]) == ["listening", "signing-keys"]
    assert events[2:] == ["request", "stopped"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info", line) for line in lines)


def test_commands_beside_a_running_server(directory: Path) -> None:
    """The operator's commands and the server share the database; the server sees what changed a moment later."""
    state = str(directory / "state")
    with serving(directory) as server, environment():
        before = advertised(server.port)
        failures: list[int] = []

        def ask() -> None:
            failures.extend(
                status for _ in range(40) if (status := request(server.port, "GET", "/adv")[0]) != 200
            )

        asking = threading.Thread(target=ask)
        asking.start()
        made = run("--state", state, "keys", "rotate")[0].split()
        asking.join()
        assert failures == []
        time.sleep(LIFE_S)
        assert advertised(server.port) == made
        assert before != made
        # The old key is advertised no longer, and still found by who trusts it.
        assert request(server.port, "GET", f"/adv/{before[0]}")[0] == 200
