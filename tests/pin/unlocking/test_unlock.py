"""The pin at the moment of unlocking, against the real server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import (
    PIN,
    SECRET,
    Machine,
    Operator,
    certificate,
    ended,
    header,
    pin_of,
    readdressed,
    until_gone,
    with_header,
)
from tests.ports import free_port

pytestmark = pytest.mark.slow


def test_secret(machine: Machine, jwe: bytes) -> None:
    """Every byte comes back, nothing is said, nothing stays behind."""
    opened = machine.decrypt(jwe)
    assert opened.stdout == SECRET
    assert opened.stderr == b""
    assert machine.console == ""
    assert machine.leftovers() == []
    assert machine.last["code"] == "ok"


def test_header(jwe: bytes, server: Server, name: str) -> None:
    """The header is that of docs/protocol.md, section 8, and small."""
    members = header(jwe)
    attest = members["clevis"]["attest"]
    assert members.keys() == {"alg", "enc", "epk", "kid", "clevis"}
    assert (members["alg"], members["enc"], members["clevis"]["pin"]) == ("ECDH-ES", "A256GCM", "attest")
    assert attest.keys() == {"url", "adv", "ak", "name"}
    assert (attest["url"], attest["ak"], attest["name"]) == ([server.url], "0x81010002", name)
    assert len(jwe) < 4096


def test_refused_then_approved(machine: Machine, jwe: bytes, server: Server, name: str) -> None:
    """After a change the console says which PCR differs and what to do; doing it opens the disk."""
    machine.boot_with_another(7)
    refused = machine.decrypt(jwe)
    assert refused.returncode == 1
    assert refused.stdout == b""
    line = (
        "tang-attest: refused (pcr-mismatch): PCR 7 is not as approved. (PCR 7: Secure Boot) "
        f"Look at it on the server and run 'tang-attest approve {name}' there: this machine then opens by itself."
    )
    assert refused.stderr.decode() == line + "\n"
    assert machine.console == f"\r\n{line}\r\n"
    assert (machine.last["code"], machine.last["pcrs"]) == ("pcr-mismatch", [7])
    assert machine.leftovers() == []
    server.operator.run("approve", name, "--force")
    assert machine.decrypt(jwe).stdout == SECRET


def test_console_is_not_flooded(machine: Machine, jwe: bytes) -> None:
    """clevis tries again every few seconds; the same reason is printed once."""
    machine.boot_with_another(4)
    for _ in range(3):
        assert machine.decrypt(jwe).returncode == 1
    assert machine.console.count("PCR 4") == 2  # one line: in the sentence and in the explanation
    machine.tpm.run("tpm2", "pcrextend", f"7:sha256={'00' * 32}")
    assert machine.decrypt(jwe).returncode == 1
    assert "PCR 4 and PCR 7" in machine.console


def test_removed_device(machine: Machine, jwe: bytes, server: Server, name: str) -> None:
    """A device that the operator removed is told so, and may enroll again with a new token."""
    server.operator.run("device", "remove", name, "--yes")
    assert b"refused (key-unknown)" in machine.decrypt(jwe).stderr
    again = machine.try_encrypt("-y", url=server.url, name=name)
    assert again.returncode == 1
    assert b"does not know this machine" in again.stderr
    anew = machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    assert machine.decrypt(anew).stdout == SECRET
    assert machine.decrypt(jwe).returncode == 1


def test_another_tpm(make_machine: Callable[[str], Machine], machine: Machine, jwe: bytes) -> None:
    """A disk that was carried to another machine stays closed, even if that machine has a key at the handle."""
    thief = make_machine("thief")
    attempt = thief.decrypt(jwe)
    assert attempt.returncode == 1
    assert b"the TPM has no key at 0x81010002" in attempt.stderr
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    thief.tpm.run(
        "tpm2", "createprimary", "-C", "o", "-G", "ecc256:ecdsa-sha256:null", "-a", attributes, "-c", "ak"
    )
    thief.tpm.run("tpm2", "evictcontrol", "-C", "o", "-c", "ak", "0x81010002")
    attempt = thief.decrypt(jwe)
    assert attempt.returncode == 1
    assert attempt.stdout == b""
    assert b"refused (signature-invalid)" in attempt.stderr


def test_evicted_ak(machine: Machine, jwe: bytes, server: Server, name: str) -> None:
    """A missing AK is named; enrolling again makes the same key, without a token."""
    machine.tpm.run("tpm2", "evictcontrol", "-C", "o", "-c", "0x81010002")
    attempt = machine.decrypt(jwe)
    assert attempt.returncode == 1
    assert b"the TPM has no key at 0x81010002" in attempt.stderr
    assert machine.last["code"] == "tpm"
    config = json.dumps({"url": server.url, "name": name})
    assert machine.run("clevis", "attest", "enroll", "-y", config).returncode == 0
    assert machine.decrypt(jwe).stdout == SECRET


def test_no_tpm(machine: Machine, jwe: bytes) -> None:
    """A TPM that does not answer is named as the reason."""
    attempt = machine.decrypt(jwe, TPM2TOOLS_TCTI=f"swtpm:host=127.0.0.1,port={free_port()}")
    assert attempt.returncode == 1
    assert b"no TPM answers at swtpm:host=127.0.0.1" in attempt.stderr


def test_dead_servers(machine: Machine, server: Server, name: str) -> None:
    """A dead server is passed over when binding and when opening; if all are dead, each is named."""
    dead = f"http://127.0.0.1:{free_port()}"
    jwe = machine.encrypt(url=[dead, server.url], name=name, token=server.operator.token(name))
    assert machine.decrypt(jwe).stdout == SECRET
    attempt = machine.decrypt(readdressed(jwe, dead, f"{dead}/second"))
    assert attempt.returncode == 1
    text = f"no server gave an answer: {dead}: cannot connect; {dead}/second: cannot connect"
    assert text in attempt.stderr.decode()
    assert text in machine.console
    assert machine.last["code"] == "unreachable"


def test_event_log(machine: Machine, server: Server, name: str, tmp_path: Path) -> None:
    """An event log that is there is sent at enrollment; one that cannot be read disturbs nothing."""
    log = tmp_path / "log"
    machine.extra["CLEVIS_ATTEST_EVENT_LOG"] = str(log)
    jwe = machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    log.mkdir()
    assert machine.decrypt(jwe).stdout == SECRET


DAMAGES: list[tuple[str, object]] = [
    ("kid", "../../etc"),
    ("ak", "0x81010002;id"),
    ("url", ["file:///etc/passwd"]),
    ("url", []),
    ("epk", {"kty": "EC", "crv": "P-999"}),
    ("adv", {"keys": []}),
    ("spki", "sha256//x"),
    ("ca", "relative"),
    ("pin", "tang"),
]


def test_damaged_header(machine: Machine, jwe: bytes) -> None:
    """A header that makes no sense is refused before anything is sent or run."""
    for member, value in DAMAGES:
        members = header(jwe)
        attest = members["clevis"]["attest"]
        place = next((part for part in (members, members["clevis"]) if member in part), attest)
        place[member] = value
        attempt = machine.run("clevis-decrypt-attest", stdin=with_header(jwe, members))
        assert attempt.returncode == 1, member
        assert attempt.stdout == b"", member
        assert attempt.stderr.startswith(b"tang-attest: "), member
        assert attempt.stderr.count(b"\n") == 1, member
        assert machine.leftovers() == [], member


def test_damaged_ciphertext(machine: Machine, jwe: bytes) -> None:
    """An unauthentic JWE fails, after a good exchange too."""
    parts = jwe.split(b".")
    parts[4] = b"A" * len(parts[4].strip())
    attempt = machine.decrypt(b".".join(parts))
    assert attempt.returncode == 1
    assert b"the exchange did not give the key of this JWE" in attempt.stderr


def test_https(machine: Machine, tmp_path: Path) -> None:
    """A pinned public key is enough to know the server, a wrong one closes; a CA file works as well."""
    crt, key = certificate(tmp_path)
    operator = Operator(tmp_path / "server")
    with operator.serve("--tls-certificate", str(crt), "--tls-key", str(key)) as port:
        url = f"https://127.0.0.1:{port}"
        bare = machine.try_encrypt("-y", url=url, name="pi-b")
        assert b"needs 'spki'" in bare.stderr
        wrong = "sha256//" + "A" * 43 + "="
        pinned = machine.try_encrypt("-y", url=url, name="pi-b", spki=wrong, token="t" * 20)
        assert b"its public key is not the pinned one" in pinned.stderr
        jwe = machine.encrypt(url=url, name="pi-b", spki=pin_of(crt), token=operator.token("pi-b"))
        assert machine.decrypt(jwe).stdout == SECRET
        by_ca = machine.encrypt(url=url, name="pi-b", ca=str(crt))
        assert header(by_ca)["clevis"]["attest"]["ca"] == str(crt)
        assert machine.decrypt(by_ca).stdout == SECRET
        other = tmp_path / "other"
        other.mkdir()
        crt.write_bytes(certificate(other)[0].read_bytes())
        assert b"TLS failed" in machine.decrypt(by_ca).stderr


def test_plain_files_only(machine: Machine, jwe: bytes, tmp_path: Path) -> None:
    """An initrd has bash, jose, curl, tpm2 and busybox; nothing else is needed to open."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for program in ("bash", "jose", "curl", "tpm2", "busybox"):
        found = machine.run("/bin/sh", "-c", f"command -v {program}").stdout.decode().strip()
        (tools / program).symlink_to(found)
    for applet in ("mkdir", "rm", "sleep", "sha256sum", "cat"):
        (tools / applet).symlink_to("busybox")
    for script in ("clevis-decrypt-attest", "lib/clevis-attest-functions"):
        copy = tools / Path(script).name
        copy.write_bytes((PIN / script).read_bytes())
        copy.chmod(0o755)
    (tools / "clevis-decrypt").symlink_to("/usr/bin/clevis-decrypt")
    machine.extra["PATH"] = str(tools)
    opened = machine.run("bash", tools / "clevis-decrypt", stdin=jwe)
    assert opened.stdout == SECRET, opened.stderr
    assert opened.stderr == b""
    machine.boot_with_another(4)
    assert b"PCR 4" in machine.run("clevis-decrypt-attest", stdin=jwe).stderr


@pytest.mark.bench
def test_speed(machine: Machine, tmp_path: Path) -> None:
    """An unlock with evidence takes at most 1.5 times as long as clevis' own tang pin at the same server."""
    tang = tmp_path / "tang"
    tang.mkdir()
    operator = Operator(tmp_path / "server")
    with operator.serve("--plain-tang", "--tang-dir", str(tang), "--log-level", "error") as port:
        url = f"http://127.0.0.1:{port}"
        jwe = machine.encrypt(url=url, name="pi-b", token=operator.token("pi-b"))
        plain = machine.run("clevis", "encrypt", "tang", json.dumps({"url": url}), "-y", stdin=SECRET).stdout
        took: dict[str, list[float]] = {"attest": [], "tang": []}
        for _ in range(25):
            for pin, data in (("attest", jwe), ("tang", plain)):
                begun = time.perf_counter()
                assert machine.run(f"clevis-decrypt-{pin}", stdin=data).stdout == SECRET
                took[pin].append(time.perf_counter() - begun)
    medians = {pin: sorted(times)[len(times) // 2] for pin, times in took.items()}
    print({pin: f"{median * 1000:.0f} ms" for pin, median in medians.items()})
    assert medians["attest"] <= 1.5 * medians["tang"]


def test_sigterm(machine: Machine, jwe: bytes, bad: str) -> None:
    """sss ends its losers with SIGTERM: the pin goes at once, its curl too, and nothing stays behind."""
    process = machine.start("clevis-decrypt-attest", stdin=readdressed(jwe, f"{bad}/hang"))
    time.sleep(0.7)
    assert process.poll() is None
    assert ended(process) < 5  # the limit for the request is ten seconds
    out, _ = process.communicate()
    assert out == b""
    until_gone(process.pid)
    assert machine.leftovers() == []


@pytest.mark.slow
def test_sigterm_at_any_time(machine: Machine, server: Server, name: str) -> None:
    """Whenever the pin is ended, no file and no TPM context stays, and the next attempt works."""
    token = server.operator.token(name)
    config = json.dumps({"url": server.url, "name": name, "token": token})
    for step in range(12):
        process = machine.start("clevis-attest-enroll", "-y", config, stdin=b"")
        time.sleep(0.08 * step)
        assert ended(process) < 30
        process.communicate()
        assert machine.leftovers() == [], step
    # An enrollment that ended between the server's yes and our note of it leaves a device that the operator removes.
    if name in server.operator.run("device", "list"):
        server.operator.run("device", "remove", name, "--yes")
        token = server.operator.token(name)
    jwe = machine.encrypt(url=server.url, name=name, token=token)
    for step in range(20):
        process = machine.start("clevis-decrypt-attest", stdin=jwe)
        time.sleep(0.012 * step)
        assert ended(process) < 30
        process.communicate()
        assert machine.leftovers() == [], step
    assert machine.decrypt(jwe).stdout == SECRET


def test_lockout(make_machine: Callable[[str], Machine], server: Server, name: str) -> None:
    """Our AK works in a TPM that is locked out; a foreign one without noDA does not, and the lockout is named."""
    ours, theirs = make_machine("ours"), make_machine("theirs")
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    theirs.tpm.run(
        "tpm2", "createprimary", "-C", "o", "-G", "ecc256:ecdsa-sha256:null", "-a", attributes, "-c", "ak"
    )
    theirs.tpm.run("tpm2", "evictcontrol", "-C", "o", "-c", "ak", "0x81010002")
    theirs.tpm.run("tpm2", "flushcontext", "-t")
    opened = []
    for number, machine in enumerate((ours, theirs)):
        device = f"{name}-{number}"
        jwe = machine.encrypt(url=server.url, name=device, token=server.operator.token(device))
        machine.tpm.run("tpm2", "dictionarylockout", "-s", "-n", "1", "-t", "4000", "-l", "1")
        machine.tpm.run("tpm2", "createprimary", "-C", "o", "-p", "right", "-c", "guarded")
        machine.tpm.run("tpm2", "flushcontext", "-t")
        for _ in range(2):
            machine.tpm.run(
                "tpm2", "create", "-C", "guarded", "-P", "wrong", "-u", "u", "-r", "r", check=False
            )
            machine.tpm.run("tpm2", "flushcontext", "-t")
        opened.append(machine.decrypt(jwe))
    assert opened[0].stdout == SECRET
    assert opened[1].returncode == 1
    assert b"the TPM is locked out" in opened[1].stderr
    assert b"every 4000 s" in opened[1].stderr
