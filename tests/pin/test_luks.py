"""Disks: bind, open, sss, regenerate, status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import Disk, Machine
from tests.tang.servers import keygen, tangd

pytestmark = pytest.mark.slow


@pytest.fixture
def attest(machine: Machine, server: Server, name: str) -> dict[str, Any]:
    """The configuration of a machine that is enrolled."""
    token = server.operator.token(name)
    config = {"url": server.url, "name": name, "thp": server.operator.thp}
    enrolled = machine.run("clevis", "attest", "enroll", json.dumps(config | {"token": token}))
    assert enrolled.returncode == 0, enrolled.stderr
    return config


@contextmanager
def tang(directory: Path) -> Iterator[dict[str, str]]:
    """The configuration for a stock tangd."""
    directory.mkdir()
    keygen(directory, "sig.jwk", "exc.jwk")
    with tangd(directory) as port:
        machine_config = {"url": f"http://127.0.0.1:{port}"}
        yield machine_config


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_bind_open_regenerate(machine: Machine, attest: dict[str, Any], kind: str) -> None:
    """A disk is bound, opens, is refused in another state, and gets a new key by attest-regen."""
    disk = Disk(machine, kind)
    disk.bind("attest", attest)
    old = disk.passphrase()
    assert old
    assert disk.opens_with(old)

    regenerated = machine.run("clevis", "luks", "attest-regen", "-q", "-d", disk.path, "-s", "1")
    assert regenerated.returncode == 0, regenerated.stderr
    new = disk.passphrase()
    assert new
    assert new != old
    assert disk.opens_with(new)
    assert not disk.opens_with(old)
    assert disk.opens_with(b"typed by a person")

    machine.boot_with_another(4)
    assert disk.passphrase() == b""
    assert "PCR 4" in machine.console
    assert machine.leftovers() == []


def test_regenerate_refuses(machine: Machine, attest: dict[str, Any], tmp_path: Path) -> None:
    """If attest-regen cannot help, it changes nothing and names the next step."""
    disk = Disk(machine, "luks2")
    with tang(tmp_path / "tang") as config:
        adv = machine.run("curl", "-sf", f"{config['url']}/adv").stdout
        disk.bind("sss", {"t": 1, "pins": {"attest": [attest], "tang": [config | {"adv": json.loads(adv)}]}})
        before = disk.path.read_bytes()
        refused = machine.run("clevis", "luks", "attest-regen", "-q", "-d", disk.path, "-s", "1")
        assert refused.returncode == 1
        assert b"WARNING: this policy opens the disk without any attestation" in refused.stderr
        assert disk.path.read_bytes() == before
    empty = machine.run("clevis", "luks", "attest-regen", "-q", "-d", disk.path, "-s", "0")
    assert b"no clevis binding" in empty.stderr


@pytest.mark.parametrize("threshold", [1, 2])
def test_sss(machine: Machine, attest: dict[str, Any], tmp_path: Path, threshold: int) -> None:
    """With t=2 both servers are needed; with t=1 either is enough, which status warns of."""
    disk = Disk(machine, "luks2")
    with tang(tmp_path / "tang") as config:
        adv = machine.run("curl", "-sf", f"{config['url']}/adv").stdout
        pins = {"attest": [attest], "tang": [config | {"adv": json.loads(adv)}]}
        disk.bind("sss", {"t": threshold, "pins": pins})
        assert disk.opens_with(disk.passphrase())
        status = machine.run("clevis", "attest", "status", "--json", "-d", disk.path)
        seen = json.loads(status.stdout)
        assert seen["devices"][0]["opens_without_attestation"] is (threshold == 1)
        assert status.returncode == (1 if threshold == 1 else 0), status.stdout
        machine.boot_with_another(4)
        assert bool(disk.passphrase()) is (threshold == 1)
    assert machine.leftovers() == []
    assert disk.passphrase() == b""


def test_status(machine: Machine, attest: dict[str, Any], name: str) -> None:
    """Status shows what is there and, after a refused unlock, why; then it exits with 1."""
    disk = Disk(machine, "luks2")
    disk.bind("attest", attest)
    assert disk.passphrase()
    good = machine.run("clevis", "attest", "status", "--json", "-d", disk.path)
    assert good.returncode == 0, good.stdout
    seen = json.loads(good.stdout)
    assert seen["tpm"]["reachable"] is True
    assert seen["enrollments"][0]["name"] == name
    assert seen["enrollments"][0]["key"] == "present"
    assert seen["last_unlock"]["code"] == "ok"
    assert seen["devices"] == [
        {"device": str(disk.path), "slot": 1, "pin": "attest", "opens_without_attestation": False}
    ]
    machine.boot_with_another(7)
    assert disk.passphrase() == b""
    machine.tpm.run("tpm2", "evictcontrol", "-C", "o", "-c", "0x81010002")
    bad = machine.run("clevis", "attest", "status", "-d", disk.path)
    assert bad.returncode == 1
    assert b"the last unlock failed (pcr-mismatch)" in bad.stdout
    assert b"there is no key at 0x81010002 any more" in bad.stdout
    machine.tpm.stop()
    gone = json.loads(machine.run("clevis", "attest", "status", "--json", "-d", disk.path).stdout)
    assert gone["tpm"] == {"reachable": False}
    machine.tpm.start()


@pytest.mark.parametrize(
    ("checked", "said"),
    [
        ("image", "is the volume that the image knows"),
        ("any-machine", "the image is for any machine, and knows no cipher and no key"),
        ("no-attestation", "not checked, because attestation opened nothing"),
        ("", "not checked by this initrd"),
    ],
)
def test_status_says_against_what_the_root_was_checked(machine: Machine, checked: str, said: str) -> None:
    """The initrd leaves a word; an older one leaves none."""
    (machine.directory / "run").mkdir(exist_ok=True)
    if checked:
        (machine.directory / "run/root-checked").write_text(f"{checked}\n")
    seen = json.loads(machine.run("clevis", "attest", "status", "--json").stdout)
    assert seen["root"] == (checked or None)
    assert said in machine.run("clevis", "attest", "status").stdout.decode()


def boot_of(
    machine: Machine,
    *,
    secure: int | None,
    environ: bytes = b"HOME=/\0",
    found: str = "",
    looked: bool = False,
) -> None:
    """An EFI machine (``None``: none) with Secure Boot on or off, the environment of PID 1, and what the initrd found."""
    (machine.directory / "run").mkdir(exist_ok=True)
    if looked:
        (machine.directory / "run/looked").touch()
    if found:
        (machine.directory / "run/unmeasured").write_text(found)
    efi, pid1 = machine.directory / "efi", machine.directory / "environ"
    pid1.write_bytes(environ)
    if secure is not None:
        (efi / "efivars").mkdir(parents=True)
        name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        (efi / "efivars" / name).write_bytes(b"\6\0\0\0" + bytes([secure]))
    machine.extra |= {"CLEVIS_ATTEST_EFI": str(efi), "CLEVIS_ATTEST_PID1": str(pid1)}


@pytest.mark.parametrize(
    ("boot", "word", "said"),
    [
        ({"secure": None}, "no-efi", "no EFI variable can steer this boot"),
        ({"secure": 1}, "secure-boot", "Secure Boot is on"),
        ({"secure": 0}, "not-looked", "Secure Boot is off, and nothing is known to have looked"),
        ({"secure": 0, "environ": b"A=1\0SYSTEMD_EFI_OPTIONS=\0"}, "looked", "the initrd looked for"),
        ({"secure": 0, "looked": True}, "looked", "the initrd looked for"),
        (
            {"secure": 0, "environ": b"SYSTEMD_EFI_OPTIONS=debug\0"},
            "not-looked",
            "nothing is known to have looked",
        ),
        ({"secure": 0, "found": "SystemdOptions\nSMBIOS\n"}, "found", "SystemdOptions SMBIOS"),
    ],
)
def test_status_says_whether_something_unmeasured_could_steer_the_boot(
    machine: Machine, boot: dict[str, Any], word: str, said: str
) -> None:
    """By Secure Boot, by what our /init left to PID 1, and by what it found; only a finding needs attention."""
    boot_of(machine, **boot)
    seen = json.loads(machine.run("clevis", "attest", "status", "--json").stdout)
    assert seen["unmeasured_inputs"] == word
    assert any("nobody measured" in warning for warning in seen["warnings"]) == (word == "found")
    assert said in machine.run("clevis", "attest", "status").stdout.decode()
