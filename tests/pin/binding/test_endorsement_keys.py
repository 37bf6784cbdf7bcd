"""Endorsement keys and certificates as TPMs have them: vendors' templates and nonces, the high range, odd indexes, passwords."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization

from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine, command_lines
from tests.protocol.endorsement import ek_pki as pki
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow

POLICY_A: Final = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
POLICY_B: Final = "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
POLICY_B_384: Final = (
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
ROOT = pki.ca("Vendor Root", key=pki.rsa_key("vendor"))


class _Public:
    """A key of which only the public half is known, for a certificate that somebody else signs."""

    def __init__(self, public: object) -> None:
        self.public = public

    def public_key(self) -> object:
        """The half."""
        return self.public


def define(machine: Machine, index: str, data: bytes) -> None:
    """An NV index that anybody may read, with *data* in it."""
    (machine.directory / "nv-data").write_bytes(data)
    attributes = "ownerread|ownerwrite|authread|policywrite"
    for command in (
        ("tpm2", "nvdefine", "-Q", index, "-C", "o", "-s", str(len(data)), "-a", attributes),
        ("tpm2", "nvwrite", "-Q", "-C", "o", index, "-i", "nv-data"),
    ):
        made = machine.run(*command)
        assert made.returncode == 0, made.stderr


def certify(machine: Machine, *creating: str, unique: bytes | None = None, policy: str = POLICY_A) -> bytes:
    """The vendor's certificate for the primary key that tpm2 createprimary makes in the endorsement hierarchy."""
    (machine.directory / "policy").write_bytes(bytes.fromhex(policy))
    command = ["tpm2", "createprimary", "-Q", "-C", "e", "-c", "ek.ctx", "-L", "policy", *creating]
    if unique is not None:
        (machine.directory / "unique").write_bytes(unique)
        command += ["-u", "unique"]
    for each in (
        command,
        ["tpm2", "readpublic", "-Q", "-c", "ek.ctx", "-f", "pem", "-o", "ek.pem"],
        ["tpm2", "flushcontext", "-t"],
    ):
        made = machine.run(*each)
        assert made.returncode == 0, made.stderr
    public = serialization.load_pem_public_key((machine.directory / "ek.pem").read_bytes())
    return pki.ek(ROOT, key=_Public(public), not_before=pki.NOW - timedelta(days=365)).der  # type: ignore[arg-type]


def memory_rsa(data: bytes) -> bytes:
    """Input of tpm2 createprimary -u for an RSA key: the structure as it lies in memory."""
    return len(data).to_bytes(2, "little") + data


def memory_ecc(x: bytes, y: bytes) -> bytes:
    """The same for a point."""
    return b"".join(len(part).to_bytes(2, "little") + part.ljust(128, b"\0") for part in (x, y))


def rsa_template(unique: bytes, attributes: str = "000300b2") -> bytes:
    """A TPMT_PUBLIC like L-1 with another unique field, or with other attributes."""
    head = bytes.fromhex(f"0001000b{attributes}0020{POLICY_A}0006008000430010080000000000")
    return head + len(unique).to_bytes(2) + unique


def ecc_template(x: bytes, y: bytes) -> bytes:
    """A TPMT_PUBLIC like L-2."""
    head = bytes.fromhex(f"0023000b000300b20020{POLICY_A}000600800043001000030010")
    return head + b"".join(len(part).to_bytes(2) + part for part in (x, y))


RSA_L = ("-G", "rsa2048:aes128cfb", "-g", "sha256", "-a", "0x300b2")
ECC_L = ("-G", "ecc256:aes128cfb", "-g", "sha256", "-a", "0x300b2")
NONCE = bytes(range(1, 33))
VENDOR_X = b"\x11" * 32


def _vendors_rsa(machine: Machine) -> None:
    """Nonce and template: the nonce takes the place of the unique field, padded to the key's size."""
    define(machine, "0x01c00003", NONCE)
    define(machine, "0x01c00004", rsa_template(bytes(256)))
    define(machine, "0x01c00002", certify(machine, *RSA_L, unique=memory_rsa(NONCE.ljust(256, b"\0"))))


def _nonce_alone(machine: Machine) -> None:
    """A nonce for the default template."""
    define(machine, "0x01c00003", NONCE)
    define(machine, "0x01c00002", certify(machine, *RSA_L, unique=memory_rsa(NONCE.ljust(256, b"\0"))))


def _template_alone(machine: Machine) -> None:
    """A template with a unique field, and other attributes: userWithAuth."""
    define(machine, "0x01c00004", rsa_template(b"\x07" * 256, "000300f2"))
    creating = ("-G", "rsa2048:aes128cfb", "-g", "sha256", "-a", "0x300f2")
    define(machine, "0x01c00002", certify(machine, *creating, unique=memory_rsa(b"\x07" * 256)))


def _unused_template(machine: Machine) -> None:
    """There are a nonce and a template, and the certificate is for the default key all the same."""
    define(machine, "0x01c00003", NONCE)
    define(machine, "0x01c00004", rsa_template(b"\x07" * 256))
    define(machine, "0x01c00002", certify(machine, *RSA_L, unique=memory_rsa(bytes(256))))


def _broken_template(machine: Machine) -> None:
    """A template that is none hinders nothing."""
    define(machine, "0x01c00004", b"\xff" * 60)
    define(machine, "0x01c00002", certify(machine, *RSA_L, unique=memory_rsa(bytes(256))))


def _vendors_ecc(machine: Machine) -> None:
    """P-256 with nonce and template."""
    define(machine, "0x01c0000b", NONCE[:20])
    define(machine, "0x01c0000c", ecc_template(VENDOR_X, VENDOR_X))
    define(
        machine,
        "0x01c0000a",
        certify(machine, *ECC_L, unique=memory_ecc(NONCE[:20].ljust(32, b"\0"), bytes(32))),
    )


def _second_certificate(machine: Machine) -> None:
    """The RSA certificate is another TPM's, the P-256 one is for this TPM."""
    define(machine, "0x01c00002", pki.ek(ROOT, key=pki.rsa_key("another TPM")).der)
    define(machine, "0x01c0000a", certify(machine, *ECC_L, unique=memory_ecc(bytes(32), bytes(32))))


def _high_rsa(machine: Machine) -> None:
    """H-1."""
    creating = ("-G", "rsa2048:aes128cfb", "-g", "sha256", "-a", "0x300f2")
    define(machine, "0x01c00012", certify(machine, *creating, policy=POLICY_B))


def _high_p256(machine: Machine) -> None:
    """H-2, padded."""
    creating = ("-G", "ecc256:aes128cfb", "-g", "sha256", "-a", "0x300f2")
    define(machine, "0x01c00014", certify(machine, *creating, policy=POLICY_B) + b"\xff" * 100)


def _high_p384(machine: Machine) -> None:
    """H-3."""
    creating = ("-G", "ecc384:aes256cfb", "-g", "sha384", "-a", "0x300f2")
    define(machine, "0x01c00016", certify(machine, *creating, policy=POLICY_B_384))


def _high_p384_with_a_template(machine: Machine) -> None:
    """A template beside it, as the vendor's."""
    head = bytes.fromhex(f"0023000c000300f20030{POLICY_B_384}000601000043001000040010")
    define(machine, "0x01c00017", head + b"\0\x30" + b"\x22" * 48 + b"\0\x30" + b"\x22" * 48)
    creating = ("-G", "ecc384:aes256cfb", "-g", "sha384", "-a", "0x300f2")
    certificate = certify(
        machine, *creating, policy=POLICY_B_384, unique=memory_ecc(b"\x22" * 48, b"\x22" * 48)
    )
    define(machine, "0x01c00016", certificate)


def _high_rsa3072(machine: Machine) -> None:
    """H-6."""
    creating = ("-G", "rsa3072:aes256cfb", "-g", "sha384", "-a", "0x300f2")
    define(machine, "0x01c0001c", certify(machine, *creating, policy=POLICY_B_384))


def _pem(machine: Machine) -> None:
    """The index holds PEM."""
    der = certify(machine, *RSA_L, unique=memory_rsa(bytes(256)))
    text = base64.encodebytes(der)
    define(machine, "0x01c00002", b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n")


def _stored(machine: Machine) -> None:
    """The index has a TPM 1.2's header, a vendor's template fits."""
    define(machine, "0x01c00004", rsa_template(b"\x07" * 256))
    der = certify(machine, *RSA_L, unique=memory_rsa(b"\x07" * 256))
    define(machine, "0x01c00002", b"\x10\x01\x00" + len(der).to_bytes(2) + der)


TPMS: Final[list[Callable[[Machine], None]]] = [
    _vendors_rsa,
    _nonce_alone,
    _template_alone,
    _unused_template,
    _broken_template,
    _vendors_ecc,
    _second_certificate,
    _high_rsa,
    _high_p256,
    _high_p384,
    _high_p384_with_a_template,
    _high_rsa3072,
    _pem,
    _stored,
]


@pytest.fixture(scope="session")
def vendor(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server, which trusts the vendor of these tests."""
    file = tmp_path_factory.mktemp("vendor") / "root.pem"
    file.write_bytes(ROOT.pem)
    server.operator.run("ek-root", "add", str(file))
    return server


@pytest.mark.parametrize("provision", TPMS, ids=[each.__name__.strip("_") for each in TPMS])
def test_the_key_that_fits_the_certificate(
    machine: Machine, vendor: Server, name: str, provision: Callable[[Machine], None]
) -> None:
    """The pin finds the key that the certificate is for, the server verifies it, and the TPM activates the credential."""
    provision(machine)
    token = vendor.operator.run("token", "create", "--name", name, "--record", "--force").strip()
    done = machine.try_encrypt("-y", url=vendor.url, name=name, token=token)
    assert done.returncode == 0, done.stderr
    assert b"did not verify" not in done.stderr
    assert machine.decrypt(done.stdout).stdout == SECRET
    assert machine.leftovers() == []


def test_only_the_high_range_of_a_real_provisioning(vendor: Server, name: str, tmp_path: Path) -> None:
    """swtpm_setup writes a certificate at 0x01c00016; without the low one, P-384 is enrolled."""
    with Swtpm(tmp_path / "certified", create_ek_cert=True) as tpm:
        machine = Machine(tmp_path / "machine", tpm)
        assert b"0x1C00016" in machine.run("tpm2", "getcap", "handles-nv-index").stdout
        assert machine.run("tpm2", "nvundefine", "-C", "p", "0x01c00002").returncode == 0
        for certificate in tpm.ca_certificates:
            vendor.operator.run("ek-root", "add", str(certificate))
        token = vendor.operator.run("token", "create", "--name", name, "--record", "--force").strip()
        done = machine.try_encrypt("-y", url=vendor.url, name=name, token=token)
        assert done.returncode == 0, done.stderr
        assert b"did not verify" not in done.stderr


ODD: Final = {
    "0xff only": b"\xff" * 600,
    "TPM 1.2 header before a certificate": b"\x10\x01\x00\x00\x03" + b"\x30\x03\x02\x01\x00",
    "gzip": b"\x1f\x8b" + b"x" * 90,
    "0x00 only": bytes(600),
    "another TPM's": pki.ek(ROOT, key=pki.rsa_key("another TPM")).der,
    "half a PEM": b"-----BEGIN CERTIFICATE-----\nMIIB",
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_an_index_that_holds_no_certificate_of_this_tpm(
    machine: Machine, vendor: Server, name: str, data: bytes
) -> None:
    """Enrolled with a note where the operator said so; refused with a code of its own where not."""
    define(machine, "0x01c00002", data)
    strict = vendor.operator.run("token", "create", "--name", name, "--record", "--force").strip()
    refused = machine.try_encrypt("-y", url=vendor.url, name=name, token=strict)
    assert refused.returncode == 1
    assert b"refused (ek-" in refused.stderr
    done = machine.try_encrypt("-y", url=vendor.url, name=name, token=vendor.operator.token(name))
    assert done.returncode == 0, done.stderr
    assert b"the server did not verify this TPM's endorsement certificate" in done.stderr
    assert machine.decrypt(done.stdout).stdout == SECRET


# --- passwords of the hierarchies -----------------------------------------------------------------------------------


def passwords(machine: Machine, owner: str = "", endorsement: str = "") -> None:
    """The hierarchies get passwords."""
    for hierarchy, password in (("o", owner), ("e", endorsement)):
        if password:
            assert machine.run("tpm2", "changeauth", "-c", hierarchy, password).returncode == 0


@pytest.mark.parametrize("end", ["", "\n"], ids=["bare", "with a line end"])
def test_passwords_out_of_files(machine: Machine, server: Server, name: str, end: str) -> None:
    """Owner and endorsement hierarchy have passwords of their own."""
    passwords(machine, "owner's", "endorsement's")
    files = {}
    for hierarchy in ("owner", "endorsement"):
        file = machine.directory / hierarchy
        file.write_text(f"{hierarchy}'s{end}")
        files[f"{hierarchy}_auth_file"] = str(file)
    jwe = machine.encrypt(url=server.url, name=name, token=server.operator.token(name), **files)
    assert machine.decrypt(jwe).stdout == SECRET
    assert b"auth_file" not in base64.urlsafe_b64decode(jwe.split(b".")[0] + b"===")
    assert machine.leftovers() == []


def test_one_password_for_both_hierarchies(machine: Machine, server: Server, name: str) -> None:
    """The owner's file is tried for the endorsement hierarchy too; by option of the enroll command."""
    passwords(machine, "the same", "the same")
    file = machine.directory / "auth"
    file.write_text("the same\n")
    token = machine.directory / "token"
    token.write_text(server.operator.token(name))
    options = ("--url", server.url, "--name", name, "--thp", server.operator.thp, "--token-file", str(token))
    done = machine.run("clevis", "attest", "enroll", *options, "--owner-auth-file", str(file))
    assert done.returncode == 0, done.stderr
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("owner", "endorsement"), [("secret", ""), ("", "secret")], ids=["owner", "endorsement"]
)
def test_a_password_that_nobody_gave(
    machine: Machine, server: Server, name: str, owner: str, endorsement: str
) -> None:
    """A sentence of its own names the hierarchy and the way to give it; the token stays unused."""
    passwords(machine, owner, endorsement)
    which = "owner" if owner else "endorsement"
    token = server.operator.token(name)
    refused = machine.try_encrypt("-y", url=server.url, name=name, token=token)
    assert refused.returncode == 1
    assert f"the TPM's {which} hierarchy has a password".encode() in refused.stderr
    assert f"--{which}-auth-file".encode() in refused.stderr
    assert b"ESYS" not in refused.stderr.upper()
    file = machine.directory / "auth"
    file.write_text("wrong")
    wrong = machine.try_encrypt(
        "-y", url=server.url, name=name, token=token, **{f"{which}_auth_file": str(file)}
    )
    assert f"is not that of the TPM's {which} hierarchy".encode() in wrong.stderr
    file.write_text("secret")
    done = machine.try_encrypt(
        "-y", url=server.url, name=name, token=token, **{f"{which}_auth_file": str(file)}
    )
    assert done.returncode == 0, done.stderr
    assert machine.leftovers() == []


def test_a_password_is_asked_for(machine: Machine, server: Server, name: str) -> None:
    """On a terminal a person types it, unseen, and may err once."""
    passwords(machine, "typed")
    config = json.dumps(
        {"url": server.url, "name": name, "token": server.operator.token(name), "thp": server.operator.thp}
    )
    (machine.directory / "config").write_text(config)
    (machine.directory / "run.sh").write_text(
        'printf secret | clevis encrypt attest "$(cat config)" >jwe; echo "rc $?"\n'
    )
    run = machine.run("script", "-qefc", "bash run.sh", "/dev/null", stdin=b"wrong\ntyped\n")
    said = run.stdout.decode()
    assert said.count("Password of the TPM's owner hierarchy:") == 2
    assert "rc 0" in said, said


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, b"cannot be read"), ("", b"cannot be read"), ("x" * 65, b"more than 64 bytes")],
)
def test_password_files_that_are_none(machine: Machine, content: str | None, said: bytes) -> None:
    """They are named before anything else is done."""
    file = machine.directory / "auth"
    if content is not None:
        file.write_text(content)
    refused = machine.try_encrypt("-y", url="http://127.0.0.1:1", owner_auth_file=str(file))
    assert refused.returncode == 1
    assert said in refused.stderr


def test_passwords_stay_secret(machine: Machine, server: Server, name: str) -> None:
    """They are on no command line and in no environment, whatever runs."""

    passwords(machine, "very-secret-password")
    file = machine.directory / "auth"
    file.write_text("very-secret-password")
    config = json.dumps(
        {"url": server.url, "name": name, "token": server.operator.token(name), "owner_auth_file": str(file)}
    )
    process = machine.start("clevis", "encrypt", "attest", config, "-y", stdin=SECRET)
    seen: set[bytes] = set()
    while process.poll() is None:
        seen.update(command_lines(process.pid))
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert any(b"createprimary" in line for line in seen)
    assert b"very-secret-password" not in b"".join(seen)
    for path in machine.directory.rglob("*"):
        assert path == file or not path.is_file() or b"very-secret-password" not in path.read_bytes(), path
