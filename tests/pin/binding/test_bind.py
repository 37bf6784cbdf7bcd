"""Enrolling and binding: trust, tokens, state, and what is refused."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pin.binding.thief import Thief
from tests.pin.conftest import Server
from tests.pin.machine import PIN, SECRET, Machine, command_lines, header
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow


def test_second_disk_needs_no_token(machine: Machine, server: Server, name: str) -> None:
    """The first binding enrolls; the next ones use the enrollment, and a token that is given anyway is not used."""
    token = server.operator.token(name)
    first = machine.encrypt(url=server.url, name=name, token=token)
    second = machine.encrypt(url=server.url)
    assert header(first)["kid"] == header(second)["kid"]
    third = machine.try_encrypt("-y", url=server.url, token=token)
    assert b"the token was not used" in third.stderr
    for jwe in (first, second, third.stdout):
        assert machine.decrypt(jwe).stdout == SECRET
    assert machine.leftovers() == []


def test_the_cap_of_the_policy_is_told_where_it_is_not_the_usual_one(
    machine: Machine, server: Server, name: str
) -> None:
    """An initrd that caps PCR 15 under a policy that expects PCR 14 lets the running system unlock."""
    options = ("--selection", "sha256:0,7,14", "--cap-pcr", "14")
    token = server.operator.token(name, *options)
    bound = machine.try_encrypt("-y", url=server.url, name=name, token=token)
    assert bound.returncode == 0, bound.stderr
    assert b"the cap of this machine's policy is PCR 14" in bound.stderr
    assert b"PCR 14" in machine.try_encrypt("-y", url=server.url).stderr
    assert header(bound.stdout)["clevis"]["attest"]["adv"]["cap_pcr"] == 14


def test_the_usual_cap_is_no_news(machine: Machine, server: Server, name: str) -> None:
    """PCR 15, which an initrd caps by itself."""
    bound = machine.try_encrypt("-y", url=server.url, name=name, token=server.operator.token(name))
    assert bound.returncode == 0, bound.stderr
    assert b"cap of this" not in bound.stderr


def test_without_enrollment(machine: Machine, server: Server) -> None:
    """A machine that is not enrolled is told how to become it; nothing is made."""
    attempt = machine.try_encrypt("-y", url=server.url)
    assert attempt.returncode == 1
    assert b"give a 'token'" in attempt.stderr
    assert machine.tpm.run("tpm2", "getcap", "handles-persistent").stdout.count(b"81010002") == 0
    assert machine.leftovers() == []


def test_token_stays_secret(machine: Machine, server: Server, name: str) -> None:
    """A token out of a file is on no command line, in no file and in no JWE."""
    token = server.operator.token(name)
    file = machine.directory / "token"
    file.write_text(token + "\n")
    config = json.dumps({"url": server.url, "name": name, "token": f"@{file}"})
    process = machine.start("clevis", "encrypt", "attest", config, "-y", stdin=SECRET)
    seen: set[bytes] = set()
    while process.poll() is None:
        seen.update(command_lines(process.pid))
        time.sleep(0.001)
    jwe, said = process.communicate()
    assert process.returncode == 0, said
    assert any(b"curl" in line for line in seen)
    assert token.encode() not in b"".join(seen) + said + jwe + json.dumps(header(jwe)).encode()
    for path in machine.directory.rglob("*"):
        assert path == file or not path.is_file() or token.encode() not in path.read_bytes(), path


def test_secrets_of_an_unlock(machine: Machine, jwe: bytes) -> None:
    """While a disk is opened, neither the plaintext nor a private key is on a command line or on stderr."""
    seen: set[bytes] = set()
    for _ in range(3):
        process = machine.start("clevis-decrypt-attest", stdin=jwe)
        while process.poll() is None:
            seen.update(command_lines(process.pid))
            time.sleep(0.001)
        out, said = process.communicate()
        assert out == SECRET
        assert said == b""
    lines = b"".join(seen)
    assert b"jose" in lines
    assert b'"d"' not in lines
    assert SECRET.split(b"\0")[0] not in lines
    for path in machine.directory.rglob("*"):
        assert not path.is_file() or SECRET.split(b"\0")[0] not in path.read_bytes(), path


def test_thumbprint(machine: Machine, server: Server, name: str) -> None:
    """The right thumbprint needs no question, a wrong one closes, -y or not, before the token is shown to anybody."""
    token = server.operator.token(name)
    for options in ((), ("-y",)):
        wrong = machine.try_encrypt(*options, url=server.url, name=name, token=token, thp="A" * 43)
        assert wrong.returncode == 1
        assert b"not signed by a trusted key" in wrong.stderr
    right = machine.try_encrypt(url=server.url, name=name, token=token, thp=["A" * 43, server.operator.thp])
    assert right.returncode == 0, right.stderr
    assert machine.decrypt(right.stdout).stdout == SECRET


def test_advertisement(machine: Machine, server: Server, name: str) -> None:
    """A trusted advertisement, in a file or in the configuration, needs no question; a forged one closes."""
    fetched = machine.run("curl", "-sf", f"{server.url}/adv").stdout
    file = machine.directory / "adv.jws"
    file.write_bytes(fetched)
    by_file = machine.try_encrypt(url=server.url, name=name, token=server.operator.token(name), adv=str(file))
    assert by_file.returncode == 0, by_file.stderr
    by_object = machine.try_encrypt(url=server.url, adv=json.loads(fetched))
    assert by_object.returncode == 0, by_object.stderr
    forged = json.loads(fetched)
    forged["signature"] = "A" * len(forged["signature"])
    attempt = machine.try_encrypt(url=server.url, adv=forged)
    assert attempt.returncode == 1
    assert b"not signed" in attempt.stderr


def test_nobody_to_ask(machine: Machine, server: Server, name: str) -> None:
    """Without a thumbprint, -y or a terminal, nothing is trusted and nothing enrolled."""
    attempt = machine.try_encrypt(url=server.url, name=name, token=server.operator.token(name))
    assert attempt.returncode == 1
    assert server.operator.thp.encode() in attempt.stderr
    assert b"nobody can be asked" in attempt.stderr
    assert name not in server.operator.run("device", "list")


@pytest.mark.parametrize("answer", ["y", "n"])
def test_question(machine: Machine, server: Server, name: str, answer: str) -> None:
    """On a terminal a person sees the thumbprint and decides."""
    config = json.dumps({"url": server.url, "name": name, "token": server.operator.token(name)})
    (machine.directory / "config").write_text(config)
    (machine.directory / "run.sh").write_text(
        'printf secret | clevis encrypt attest "$(cat config)" >jwe; echo "rc $?"\n'
    )
    # script(1) gives the command a terminal of its own.
    run = machine.run("script", "-qefc", "bash run.sh", "/dev/null", stdin=f"{answer}\n".encode())
    said = run.stdout.decode()
    assert server.operator.thp in said
    assert ("rc 0" if answer == "y" else "rc 1") in said, said


PINNED = "sha256//" + "A" * 43 + "="
MISTAKES: list[tuple[dict[str, object], str]] = [
    ({}, "not a JSON object with members"),
    ({"name": "pi-b"}, "lacks the 'url'"),
    ({"url": "http://127.0.0.1:1", "sipki": "x"}, "unknown member 'sipki'"),
    ({"url": "http://127.0.0.1:1", "a b": "x"}, "impossible name"),
    ({"url": []}, "url is neither"),
    ({"url": [7]}, "url is neither"),
    ({"url": "ftp://127.0.0.1"}, "not an http or https URL"),
    ({"url": "http://user:pw@127.0.0.1"}, "not an http or https URL"),
    ({"url": "http://127.0.0.1/?x=\x1b[2J"}, "not an http or https URL"),
    ({"url": "http://127.0.0.1:99999"}, "its port is not 1 to 65535"),
    ({"url": ["http://127.0.0.1:1", "http://[1::2::3]"]}, "its host is no name and no address"),
    ({"url": "HTTP://127.0.0.1:1", "without_token": True}, "no server gave an answer"),
    ({"url": "http://127.0.0.1:1", "name": "a b"}, "name is not"),
    ({"url": "http://127.0.0.1:1", "name": 5}, "name is not"),
    ({"url": "http://127.0.0.1:1", "thp": "short"}, "thp is not"),
    ({"url": "http://127.0.0.1:1", "ak": "0x40000001"}, "ak is not"),
    ({"url": "http://127.0.0.1:1", "token": "a b"}, "the token is not"),
    ({"url": "http://127.0.0.1:1", "token": "@/nowhere"}, "cannot be read"),
    ({"url": "http://127.0.0.1:1", "without_token": "yes"}, "without_token is neither true nor false"),
    ({"url": "http://127.0.0.1:1", "without_token": True, "token": "t" * 43}, "give one of them"),
    ({"url": "http://127.0.0.1:1", "without_token": False}, "give a 'token'"),
    ({"url": "http://127.0.0.1:1", "without_token": True}, "no server gave an answer"),
    ({"url": "https://127.0.0.1:1"}, "needs 'spki'"),
    ({"url": "https://127.0.0.1:1", "spki": "sha1//x"}, "spki is not"),
    ({"url": "https://127.0.0.1:1", "ca": "/nowhere"}, "cannot read the ca file"),
    ({"url": "http://127.0.0.1:1", "spki": "sha256//" + "A" * 43 + "="}, "are for https"),
    ({"url": "http://127.0.0.1:1", "client_cert": "/c", "client_key": "/k"}, "are for https"),
    ({"url": "https://127.0.0.1:1", "spki": PINNED, "client_cert": "/c"}, "given together"),
    ({"url": "https://127.0.0.1:1", "spki": PINNED, "client_key": "/k"}, "given together"),
    (
        {"url": "https://127.0.0.1:1", "spki": PINNED, "client_cert": "c", "client_key": "/k"},
        "client_cert is not",
    ),
    (
        {"url": "https://127.0.0.1:1", "spki": PINNED, "client_cert": "/c", "client_key": "/k:x"},
        "client_key is not",
    ),
    (
        {"url": "https://127.0.0.1:1", "spki": PINNED, "client_cert": "/c", "client_key": "/k"},
        "cannot read /c",
    ),
    ({"url": "http://127.0.0.1:1", "adv": "/nowhere"}, "cannot read an advertisement"),
]


def test_configuration_mistakes(machine: Machine) -> None:
    """A mistake in the configuration is named and never ignored."""
    for config, said in MISTAKES:
        attempt = machine.try_encrypt("-y", **config)
        assert attempt.returncode == 1, config
        assert attempt.stdout == b"", config
        assert said in attempt.stderr.decode(), config
        assert b"\x1b" not in attempt.stderr, config


def test_used_token(
    make_machine: Callable[[str], Machine], machine: Machine, server: Server, name: str
) -> None:
    """The server's refusal of a token is shown with its action."""
    token = server.operator.token(name)
    machine.encrypt(url=server.url, name=name, token=token)
    other = make_machine("other")
    attempt = other.try_encrypt("-y", url=server.url, name=name, token=token)
    assert attempt.returncode == 1
    assert b"refused (token-used)" in attempt.stderr
    assert other.leftovers() == []


def test_foreign_key_at_the_handle(machine: Machine, server: Server, name: str) -> None:
    """A key that is not an AK is never evicted; another handle can be chosen."""
    machine.tpm.run("tpm2", "createprimary", "-C", "o", "-c", "srk")
    machine.tpm.run("tpm2", "evictcontrol", "-C", "o", "-c", "srk", "0x81010002")
    machine.tpm.run("tpm2", "flushcontext", "-t")
    before = machine.tpm.run("tpm2", "readpublic", "-c", "0x81010002").stdout
    token = server.operator.token(name)
    attempt = machine.try_encrypt("-y", url=server.url, name=name, token=token)
    assert attempt.returncode == 1
    assert b"not a restricted signing key" in attempt.stderr
    assert machine.tpm.run("tpm2", "readpublic", "-c", "0x81010002").stdout == before
    jwe = machine.encrypt(url=server.url, name=name, token=token, ak="0x81010007")
    assert machine.decrypt(jwe).stdout == SECRET
    assert machine.leftovers() == []


def test_others_contexts_survive(machine: Machine, server: Server, name: str) -> None:
    """Enrolling flushes what it made and nothing that another program has in the TPM."""
    machine.tpm.run("tpm2", "createprimary", "-C", "o", "-c", "theirs")
    machine.baseline = machine.contexts()
    assert "0x80000000" in machine.baseline
    machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    assert machine.leftovers() == []


def test_cleared_tpm(machine: Machine, jwe: bytes, server: Server, name: str) -> None:
    """After TPM2_Clear the enrollment is recognized as void, and a new token replaces it."""
    machine.tpm.run("tpm2", "clear", "-c", "p")
    assert machine.decrypt(jwe).returncode == 1
    attempt = machine.try_encrypt("-y", url=server.url, name=name)
    assert b"the TPM was cleared or replaced" in attempt.stderr
    server.operator.run("device", "remove", name, "--yes")
    anew = machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    assert machine.decrypt(anew).stdout == SECRET


def test_enroll_command(machine: Machine, server: Server, name: str) -> None:
    """``clevis attest enroll`` takes options or JSON, prints JSON, and may be repeated."""
    options = ("--url", server.url, "--name", name, "--thp", server.operator.thp, "--json")
    token = server.operator.token(name).encode()
    first = machine.run("clevis", "attest", "enroll", *options, "--token-file", "-", stdin=token)
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    assert (made["name"], made["ak"], made["enrolled"]) == (name, "0x81010002", "now")
    config = json.dumps({"url": server.url}).encode()
    again = json.loads(machine.run("clevis", "attest", "enroll", "-y", "--json", "-", stdin=config).stdout)
    assert (again["kid"], again["enrolled"]) == (made["kid"], "before")
    assert json.loads(server.operator.run("device", "list", "--json"))


def test_moved_server(machine: Machine, jwe: bytes, server: Server, name: str) -> None:
    """A server that got another address is recognized by the key that it has for this machine."""
    moved = f"http://localhost:{server.port}"
    anew = machine.encrypt(url=moved, name=name)
    assert header(anew)["kid"] == header(jwe)["kid"]
    assert machine.decrypt(anew).stdout == SECRET


def test_ek_certificate_is_verified(machine: Machine, server: Server, tmp_path: Path) -> None:
    """With a vendor's root imported, no exception is needed in the token."""
    with Swtpm(tmp_path / "certified", create_ek_cert=True) as tpm:
        certified = Machine(tmp_path / "with-certificate", tpm)
        for certificate in tpm.ca_certificates:
            server.operator.run("ek-root", "add", str(certificate))
        token = server.operator.run("token", "create", "--name", "certified", "--record", "--force").strip()
        done = certified.try_encrypt("-y", url=server.url, name="certified", token=token)
        assert done.returncode == 0, done.stderr
        assert b"did not verify" not in done.stderr


def test_summary_and_usage() -> None:
    """clevis lists the commands that have a summary; decrypting has none, as with clevis' own pins."""
    for script in (
        "clevis-encrypt-attest",
        "clevis-attest-enroll",
        "clevis-attest-status",
        "clevis-luks-attest-regen",
    ):
        run = subprocess.run([PIN / script, "--summary"], capture_output=True, check=False, timeout=120)
        assert run.returncode == 0
        assert run.stdout.count(b"\n") == 1
    run = subprocess.run(
        [PIN / "clevis-decrypt-attest", "--summary"], capture_output=True, check=False, timeout=120
    )
    assert run.returncode != 0


def test_a_thief_takes_the_token_on_its_way(machine: Machine, server: Server, name: str) -> None:
    """The server's advertisement is genuine and its signer trusted, but it names another AK: nothing is bound."""
    token = server.operator.token(name)
    with Thief(server.url).listening() as url:
        attempt = machine.try_encrypt(url=url, name=name, token=token, thp=server.operator.thp)
    assert (attempt.returncode, attempt.stdout) == (1, b"")
    assert b"answers to another TPM" in attempt.stderr
    assert name in server.operator.run("device", "list")
    assert machine.leftovers() == []
    # Nothing of it is remembered: once the operator removed the thief's device, a new token is all it takes.
    server.operator.run("device", "remove", "--yes", name)
    token = server.operator.token(name)
    assert machine.decrypt(machine.encrypt(url=server.url, name=name, token=token)).stdout == SECRET


def test_a_device_with_a_new_exchange_key(machine: Machine, server: Server, name: str) -> None:
    """After `keys rotate --device` what is bound anew gets the new key; what was bound before still opens."""
    old = machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    kid = server.operator.run("keys", "rotate", "--device", name).strip()
    new = machine.encrypt(url=server.url, name=name)
    assert (header(new)["kid"], header(old)["kid"] != kid) == (kid, True)
    for jwe in (old, new):
        assert machine.decrypt(jwe).stdout == SECRET


def test_a_tang_directory_beside_the_state(
    machine: Machine, server: Server, name: str, tmp_path: Path
) -> None:
    """Either thumbprint is enough, for this pin and for tang's; asked for none, /adv is what tangd says."""
    subprocess.run(["/usr/libexec/tangd-keygen", str(tmp_path)], check=True)
    token = server.operator.token(name)
    with server.operator.serve("--plain-tang", "--tang-dir", str(tmp_path)) as port:
        url = f"http://127.0.0.1:{port}"
        jwe = machine.encrypt(url=url, name=name, token=token, thp=server.operator.thp)
        assert machine.decrypt(jwe).stdout == SECRET
        config = json.dumps({"url": url, "thp": server.operator.thp})
        plain = machine.run("clevis", "encrypt", "tang", config, stdin=SECRET)
        assert plain.returncode == 0, plain.stderr
        assert machine.run("clevis", "decrypt", stdin=plain.stdout).stdout == SECRET
        advertisement = json.loads(machine.run("curl", "-sf", f"{url}/adv").stdout)
        assert set(advertisement) == {"payload", "protected", "signature"}
