"""A server that demands client certificates: curl shows one whose key is in a file or in the TPM."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.client_pki import SERVER as FOR_SERVERS
from tests.client_pki import ClientCa, server_certificate
from tests.pin.machine import SECRET, Disk, Machine, Operator, header, pin_of, readdressed, with_header
from tests.pin.predict.boots import SELECTION, Grub, Installed
from tests.pin.predict.running import Running
from tools.generate_docs import ROOT

pytestmark = pytest.mark.slow

KINDS = pytest.mark.parametrize("kind", ["file", "tpm"])


@dataclass(frozen=True)
class Demanding:
    """A running server that demands certificates of *ca*."""

    operator: Operator
    ca: ClientCa
    url: str
    spki: str
    flags: tuple[str, ...]

    def config(self, shown: tuple[Path, Path] | None, **more: Any) -> dict[str, Any]:
        """Configuration to bind with."""
        client = {} if shown is None else {"client_cert": str(shown[0]), "client_key": str(shown[1])}
        return {"url": self.url, "spki": self.spki, **client, **more}

    def asked(self) -> list[dict[str, Any]]:
        """The requests that it answered."""
        lines = (self.operator.state / "log").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == "request"]


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demanding]:
    """Its own key is Ed25519, which no TPM of the machines is asked about (docs/how-to/tls.md)."""
    directory = tmp_path_factory.mktemp("demanding")
    operator, ca = Operator(directory / "state"), ClientCa(directory / "ca")
    crt, key = server_certificate(directory, key=ed25519.Ed25519PrivateKey.generate())
    flags = ("--tls-certificate", str(crt), "--tls-key", str(key), "--tls-client-ca", str(ca.file))
    with operator.serve(*flags, "--log-format", "json") as port:
        yield Demanding(operator, ca, f"https://127.0.0.1:{port}", pin_of(crt), flags)


def in_tpm(machine: Machine, ca: ClientCa, directory: Path) -> tuple[Path, Path]:
    """A certificate for a key that this TPM made, by the commands of docs/how-to/tls.md."""
    key, request = directory / "tpm.key", directory / "tpm.csr"
    provider = ("-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2")
    machine.extra["TPM2OPENSSL_TCTI"] = machine.tpm.tcti
    generate = ("-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", key)
    for command in (("genpkey", *provider, *generate), ("req", "-new", *provider, "-key", key, "-subj", "/CN=pi-b", "-out", request)):  # fmt: skip
        done = machine.run("openssl", *command)
        assert done.returncode == 0, done.stderr
    del machine.extra["TPM2OPENSSL_TCTI"]
    assert key.read_text().startswith("-----BEGIN TSS2 PRIVATE KEY-----\n")
    return ca.sign(request), key


@pytest.fixture
def shown(
    request: pytest.FixtureRequest, machine: Machine, demanding: Demanding, tmp_path: Path
) -> tuple[Path, Path]:
    """The machine's own certificate and key, of the test's `kind`; copies, so that a test may change them."""
    if request.getfixturevalue("kind") == "tpm":
        return in_tpm(machine, demanding.ca, tmp_path)
    crt, key = demanding.ca.machine(f"m{tmp_path.name}")
    return Path(shutil.copy(crt, tmp_path)), Path(shutil.copy(key, tmp_path))


@KINDS
def test_bind_and_unlock(
    machine: Machine, demanding: Demanding, shown: tuple[Path, Path], name: str, kind: str
) -> None:
    """Enrolled, bound and opened over connections that show the certificate; nothing is said or left behind."""
    config = demanding.config(shown, name=name, token=demanding.operator.token(name))
    jwe = machine.encrypt(**config)
    said = header(jwe)["clevis"]["attest"]
    assert (said["client_cert"], said["client_key"]) == (str(shown[0]), str(shown[1]))
    opened = machine.decrypt(jwe)
    assert (opened.stdout, opened.stderr, machine.console) == (SECRET, b"", "")
    assert machine.leftovers() == []
    machine.boot_with_another(4)
    assert machine.decrypt(jwe).stdout == b""
    assert "refused (pcr-mismatch)" in machine.console
    assert machine.last["code"] == "pcr-mismatch"


@KINDS
def test_regenerate_and_agent(
    machine: Machine, demanding: Demanding, shown: tuple[Path, Path], name: str, kind: str
) -> None:
    """attest-regen keeps the certificate; the agent and attest enroll show one as well."""
    token = machine.directory / "token"
    token.write_text(demanding.operator.token(name))
    options = ("--client-cert", shown[0], "--client-key", shown[1], "--name", name, "--token-file", token)
    enrolled = machine.run(
        *("clevis-attest-enroll", "-y", "--url", demanding.url, "--spki", demanding.spki, *options)
    )
    assert enrolled.returncode == 0, enrolled.stderr
    disk = Disk(machine, "luks2")
    disk.bind("attest", demanding.config(shown, name=name))
    old = disk.passphrase()
    regenerated = machine.run("clevis", "luks", "attest-regen", "-q", "-d", disk.path, "-s", "1")
    assert regenerated.returncode == 0, regenerated.stderr
    assert disk.opens_with(disk.passphrase())
    assert not disk.opens_with(old)
    machine.tpm.run("tpm2", "pcrevent", "15", stdin=b"tang-attest/v1 cap\n")
    agent = machine.directory / "agent.conf"
    agent.write_text(f"spki={demanding.spki}\nclient_cert={shown[0]}\nclient_key={shown[1]}\n")
    done = machine.run("clevis-attest-agent", "--once", "--config", agent)
    assert done.returncode == 0, done.stderr
    agent.write_text(f"spki={demanding.spki}\n")
    done = machine.run("clevis-attest-agent", "--once", "--config", agent)
    assert done.returncode == 3
    assert b"it demands a client certificate, and none is configured" in done.stderr
    for wrong, sentence in (
        (f"client_cert={shown[0]}\n", b"given together"),
        ("client_cert=c\n", b"line 1: client_cert is not an absolute path"),
        ("client_key=c\n", b"line 1: client_key is not an absolute path"),
        ("client_cert=/nowhere\nclient_key=/nowhere\n", b"cannot read /nowhere"),
    ):
        agent.write_text(wrong)
        done = machine.run("clevis-attest-agent", "--once", "--config", agent)
        assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("kind", ["file"])
def test_no_option_of_curl_is_empty(
    machine: Machine, demanding: Demanding, shown: tuple[Path, Path], name: str, kind: str
) -> None:
    """curl 8 (Debian 13) ends with code 2 if it gets an empty passphrase, certificate or URL."""
    strict = machine.directory / "bin/curl"
    strict.parent.mkdir()
    strict.write_text(
        f"""#!/bin/bash
for option; do [[ -n $option ]] || exit 2; done
exec {shutil.which("curl")} "$@"
"""
    )
    strict.chmod(0o755)
    machine.extra["PATH"] = f"{strict.parent}:{machine.environment['PATH']}"
    for client in (None, shown):
        refused = machine.try_encrypt("-y", **demanding.config(client, name=name, token="x" * 22))
        assert b"curl failed" not in refused.stderr
    jwe = machine.encrypt(**demanding.config(shown, name=name, token=demanding.operator.token(name)))
    assert machine.decrypt(jwe).stdout == SECRET


def broken(kind: str, machine: Machine, ca: ClientCa, shown: tuple[Path, Path], name: str) -> None:
    """Make what the machine shows no certificate that counts."""
    match kind:
        case "expired":
            other = ca.machine(f"{name}-x", days=-1)
        case "for servers":
            other = ca.machine(f"{name}-x", usage=FOR_SERVERS)
        case "another CA":
            other = ClientCa(machine.directory / "another", name).machine()
        case "another CA of that name":
            other = ClientCa(machine.directory / "twin").machine()
        case "another key":
            other = (ca.machine(f"{name}-x")[0], shown[1])
        case "passphrase":
            locked = machine.directory / "locked"
            made = machine.run(
                "openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", shown[1], "-out", locked
            )
            assert made.returncode == 0, made.stderr
            other = (shown[0], locked)
        case "no key":
            shown[1].unlink()
            return
    for source, target in zip(other, shown, strict=True):
        if source != target:
            shutil.copy(source, target)


BROKEN = {
    "expired": "it does not accept the client certificate: that has expired. Have a new certificate made",
    "for servers": "it does not accept the client certificate: that is not for TLS clients. Have a new",
    "another CA": "it does not accept the client certificate: that is of another CA. Have a new",
    "another CA of that name": "it does not accept the client certificate: that is of another CA. Have a new",
    "another key": "the client certificate and key cannot be used. See that they belong together",
    "passphrase": "the client certificate and key cannot be used. See that they belong together",
    "no key": ", which the client certificate needs. Put the file back, and build the initrd again.",
}


@pytest.mark.parametrize("kind", ["file"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_certificate_that_does_not_count(
    machine: Machine, demanding: Demanding, shown: tuple[Path, Path], name: str, kind: str, how: str
) -> None:
    """The console says which, and what to do; the server has not heard of it."""
    jwe = machine.encrypt(**demanding.config(shown, name=name, token=demanding.operator.token(name)))
    before = demanding.asked()
    broken(how, machine, demanding.ca, shown, name)
    refused = machine.decrypt(jwe)
    assert (refused.stdout, refused.returncode) == (b"", 1)
    assert BROKEN[how] in machine.console.replace("\r\n", "")
    assert BROKEN[how].encode() in refused.stderr
    assert machine.last["code"] == "client-certificate"
    assert machine.last["action"].endswith(".")
    assert demanding.asked() == before
    assert machine.leftovers() == []


@pytest.mark.parametrize("kind", ["file"])
def test_none_and_revoked(
    machine: Machine, demanding: Demanding, shown: tuple[Path, Path], name: str, kind: str
) -> None:
    """A header without a certificate, a bind without one, and one that was revoked meanwhile."""
    token = demanding.operator.token(name)
    bare = machine.try_encrypt("-y", **demanding.config(None, name=name, token=token))
    assert bare.returncode == 1
    assert b"it demands a client certificate, and none is configured" in bare.stderr
    jwe = machine.encrypt(**demanding.config(shown, name=name, token=token))
    members = header(jwe)
    for member in ("client_cert", "client_key"):
        del members["clevis"]["attest"][member]
        half = machine.decrypt(with_header(jwe, members))
        assert half.returncode == 1
        if member == "client_cert":
            assert b"spki, ca, client_cert or client_key is malformed" in half.stderr
    assert "none is configured. Bind the disk again with client_cert and client_key." in machine.console
    assert machine.last["code"] == "client-certificate"
    whole = demanding.ca.file.read_bytes()
    try:
        demanding.ca.revoke(shown[0])
        with demanding.operator.serve(*demanding.flags, "--log-format", "json") as port:
            revoked = machine.decrypt(readdressed(jwe, f"https://127.0.0.1:{port}"))
        assert b"it does not accept the client certificate: that was revoked" in revoked.stderr
    finally:
        demanding.ca.file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["tpm"])
def test_a_key_in_the_tpm_is_of_no_use_elsewhere(
    make_machine: Callable[[str], Machine], machine: Machine, demanding: Demanding, tmp_path: Path,
    shown: tuple[Path, Path], name: str, kind: str,
) -> None:  # fmt: skip
    """A copy of the initrd's files gives no certificate to show; nor has the machine once its TPM was cleared."""
    jwe = machine.encrypt(**demanding.config(shown, name=name, token=demanding.operator.token(name)))
    before = demanding.asked()
    cleared = make_machine("thief")
    for other in (cleared, machine):
        if other is machine:
            machine.tpm.run("tpm2", "clear", "-c", "p")
        refused = other.decrypt(jwe)
        assert (refused.stdout, refused.returncode) == (b"", 1)
        assert b"cannot be used: the key is of another TPM, or OpenSSL has no provider tpm2" in refused.stderr
        assert (
            b"Install tpm2-openssl; after the TPM was cleared or replaced, make a new key." in refused.stderr
        )
        assert other.last["code"] == "client-certificate"
    assert demanding.asked() == before


@pytest.mark.parametrize("kind", ["tpm"])
def test_a_tpm_that_cannot_check_the_server(
    machine: Machine, demanding: Demanding, shown: tuple[Path, Path], name: str, kind: str, tmp_path: Path
) -> None:
    """If the server's key is not Ed25519 and the TPM has no room for its check, the message names the remedy."""
    crt, key = server_certificate(tmp_path / "ecdsa")
    flags = ("--tls-certificate", str(crt), "--tls-key", str(key), *demanding.flags[4:])
    with demanding.operator.serve(*flags, "--log-format", "json") as port:
        url = f"https://127.0.0.1:{port}"
        config = demanding.config(shown, name=name, token=demanding.operator.token(name))
        refused = machine.try_encrypt("-y", **config | {"url": url, "spki": pin_of(crt)})
        assert refused.returncode == 1
        # As tpm2-openssl 1.1 (Debian 12) and 1.3 (Debian 13) say it.
        assert re.search(
            rb"the TPM cannot sign with the client key \(cannot (duplicate context|hash)\)", refused.stderr
        )
    assert machine.leftovers() == []


def commands(section: str) -> str:
    """Commands of a section of docs/how-to/tls.md to make keys, certificates and lists."""
    text = (ROOT / "docs/how-to/tls.md").read_text().partition(f"# {section}\n")[2].partition("\n## ")[0]
    typed = re.findall(
        r"^    ((?:openssl|printf|touch|cat) (?:.*\\\n)*.*)$", text.partition("\n### ")[0], re.MULTILINE
    )
    assert typed, section
    return "\n".join(typed)


def test_the_how_to(machine: Machine, tmp_path: Path) -> None:
    """Its commands, in its order: a CA, a key in the TPM, a server for it, a revocation, then a key in a file."""
    machine.extra["TPM2OPENSSL_TCTI"] = machine.tpm.tcti
    in_the_tpm, ed25519_server, in_a_file = re.split(
        r"(?m)^(?=openssl req -x509 -newkey ed25519|openssl req -new -newkey)",
        commands("A machine's certificate"),
    )
    signed = in_the_tpm[in_the_tpm.index("printf") :]

    def typed(script: str) -> None:
        done = machine.run("bash", "-euxc", script)
        assert done.returncode == 0, done.stderr.decode()

    typed(f"{commands('A CA')}\n{in_the_tpm}\n{ed25519_server}")
    files = {
        name: machine.directory / name
        for name in ("cert.pem", "key.pem", "clients.pem", "client.crt", "client.key")
    }
    config = {"spki": pin_of(files["cert.pem"]), "name": "pi-b"}
    config |= {"client_cert": str(files["client.crt"]), "client_key": str(files["client.key"])}
    flags = ("--tls-certificate", str(files["cert.pem"]), "--tls-key", str(files["key.pem"]))
    operator = Operator(tmp_path / "state")
    with operator.serve(*flags, "--tls-client-ca", str(files["clients.pem"])) as port:
        jwe = machine.encrypt(url=f"https://127.0.0.1:{port}", token=operator.token("pi-b"), **config)
        assert machine.decrypt(jwe).stdout == SECRET
    typed(commands("Revoke"))
    with operator.serve(*flags, "--tls-client-ca", str(files["clients.pem"])) as port:
        again = readdressed(jwe, f"https://127.0.0.1:{port}")
        assert b"the client certificate: that was revoked" in machine.decrypt(again).stderr
        typed(f"{in_a_file}\n{signed}")
        machine.encrypt(url=f"https://127.0.0.1:{port}", **config)


@KINDS
def test_announce(
    run_machine: Callable[..., Running], demanding: Demanding, tmp_path: Path, shown: tuple[Path, Path],
    name: str, kind: str,
) -> None:  # fmt: skip
    """The next boot is announced over such a connection, by what the disk says and by options."""
    boot: Installed = Grub(tmp_path / "root")
    running = run_machine(boot)
    machine, operator = running.machine, demanding.operator
    config = demanding.config(shown, name=name, token=operator.token(name, "--selection", SELECTION))
    jwe = machine.directory / "binding.jwe"
    jwe.write_bytes(machine.encrypt(**config))
    assert machine.decrypt(jwe.read_bytes()).stdout == SECRET
    running.cap()
    told = running.predict("--jwe", jwe)
    assert (told.returncode, told.stderr) == (0, b"")
    kid = header(jwe.read_bytes())["kid"]
    options = ("--url", demanding.url, "--spki", demanding.spki, "--kid", kid, "--client-cert", shown[0])
    told = running.predict(*options, "--client-key", shown[1])
    assert (told.returncode, told.stderr) == (0, b"")
    half = running.predict(*options)
    assert (half.returncode, b"a --client-cert needs a --client-key" in half.stderr) == (2, True)
    bare = running.predict(*options[:-2])
    assert (bare.returncode, b"it demands a client certificate" in bare.stderr) == (3, True)
    shown[1].unlink()
    gone = running.predict("--jwe", jwe)
    assert (gone.returncode, b"which the client certificate needs" in gone.stderr) == (1, True)
