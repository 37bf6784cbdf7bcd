"""Announcing the next boot to a real server: it opens by itself once somebody, or the policy, agrees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pin.bad_server import ANSWERS
from tests.pin.conftest import Server
from tests.pin.machine import PIN, SECRET, Disk, Machine, readdressed
from tests.pin.predict.boots import SELECTION, Grub, Installed, SystemdBoot
from tests.pin.predict.running import Running
from tests.pin.unlocking.test_bad_server import is_printable

pytestmark = pytest.mark.slow

HOOK = PIN / "hooks" / "clevis-attest-predict-hook"


class Enrolled:
    """A machine that was enrolled in the boot that runs, and whose disk was opened in it."""

    def __init__(self, running: Running, server: Server, name: str) -> None:
        self.running, self.server, self.name = running, server, name
        self.machine = running.machine
        self.file = self.machine.directory / "binding.jwe"
        token = server.operator.token(name, "--selection", SELECTION)
        self.file.write_bytes(self.machine.encrypt(url=server.url, name=name, token=token))
        assert self.opens()
        running.cap()

    def opens(self) -> bool:
        """Return True if the disk opens."""
        return self.machine.decrypt(self.file.read_bytes()).stdout == SECRET

    def announce(self, *options: str | Path) -> tuple[int, str, str]:
        """Exit code and what was said."""
        result = self.running.predict("--jwe", self.file, *options)
        assert self.machine.leftovers() == []
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    def staged(self) -> list[dict[str, Any]]:
        """The operator's view."""
        return list(json.loads(self.server.operator.run("policy", "staged", self.name, "--json")))


@pytest.fixture
def enroll(run_machine: Callable[..., Running], server: Server, name: str) -> Callable[[Installed], Enrolled]:
    """Enrolls a machine that booted what is installed."""
    return lambda installed: Enrolled(run_machine(installed), server, name)


def updated(grub: Grub) -> None:
    """A new kernel, and a command line with all that JSON has to escape."""
    grub.versions = ["6.1.0-29", "6.1.0-28"]
    grub.options = "quiet a=/b,c"
    grub.install()


def test_an_approved_announcement_opens_the_next_boot(
    enroll: Callable[[Installed], Enrolled], tmp_path: Path
) -> None:
    """Announced, and announced again by the next hook; without approval it is worth nothing, with it the boot opens."""
    grub = Grub(tmp_path / "root")
    enrolled = enroll(grub)
    updated(grub)
    waits = 'announced: "kernel 6.1.0-29" waits for approval: tang-attest policy staged\n'
    status, said, errors = enrolled.announce()
    assert (status, said, errors) == (0, waits, "")
    assert enrolled.announce() == (0, 'known already: "kernel 6.1.0-29" waits for approval\n', "")
    (seen,) = enrolled.staged()
    assert (seen["label"], seen["life"], seen["origin"]) == ("kernel 6.1.0-29", "proposed", "predicted")
    told = json.dumps(seen)
    assert "PCR 8: menu entry Debian GNU/Linux" in told
    assert "/boot/initrd.img-6.1.0-29" in told
    enrolled.running.reboot()
    assert not enrolled.opens()
    enrolled.server.operator.run("policy", "stage", enrolled.name, "--announced", "kernel 6.1.0-29")
    assert enrolled.opens()


def test_a_policy_may_trust_predictions(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """Nobody is asked; the old kernel still opens, too."""
    boot = SystemdBoot(tmp_path / "root")
    enrolled = enroll(boot)
    enrolled.server.operator.run("policy", "trust-predictions", enrolled.name, "on")
    boot.version, boot.initrd, boot.options = "6.1.0-29", b"another initrd", 'quiet x="a \\ b"'
    boot.install()
    status, said, _ = enrolled.announce("--label", 'with "quotes" \\ and more')
    assert (status, said) == (0, 'announced: "with "quotes" \\ and more" is staged\n')
    enrolled.running.reboot()
    assert enrolled.opens()
    boot.version, boot.initrd, boot.options = "6.1.0-28", b"initrd 28", "root=/dev/mapper/root ro quiet"
    enrolled.running.reboot()
    assert enrolled.opens()


def test_what_did_not_change_is_known(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """A hook that runs for nothing leaves nothing with the operator."""
    enrolled = enroll(Grub(tmp_path / "root"))
    status, said, _ = enrolled.announce()
    assert status == 0
    assert said.startswith("known already: ")
    assert enrolled.staged() == []


def test_half_a_prediction_is_not_announced(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """The sentence names the PCRs that are missing and what remains to be done."""
    grub = Grub(tmp_path / "root")
    enrolled = enroll(grub)
    grub.timeout = 1
    grub.install()
    status, said, errors = enrolled.announce()
    assert (status, said) == (4, "")
    assert "PCR 8: cannot be predicted: grub.cfg has changed outside its menu entries" in errors
    last = errors.splitlines()[-1]
    assert "the policy has PCR 8, PCR 9, which cannot be predicted" in last
    assert "one approval is needed" in last
    assert enrolled.staged() == []


def test_a_machine_that_is_not_approved_itself_is_refused(
    enroll: Callable[[Installed], Enrolled], tmp_path: Path
) -> None:
    """It was booted with another command line."""
    grub = Grub(tmp_path / "root")
    enrolled = enroll(grub)
    grub.options = "quiet init=/bin/sh"
    grub.install()
    enrolled.running.reboot()
    status, said, errors = enrolled.announce()
    assert (status, said) == (1, "")
    assert "refused (pcr-mismatch)" in errors
    assert enrolled.staged() == []


def test_the_server_is_away(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """Exit code 3, and the address that was tried."""
    enrolled = enroll(Grub(tmp_path / "root"))
    enrolled.file.write_bytes(readdressed(enrolled.file.read_bytes(), "http://127.0.0.1:1"))
    shutil.rmtree(enrolled.machine.directory / "state")
    status, said, errors = enrolled.announce()
    assert (status, said) == (3, "")
    assert "http://127.0.0.1:1: cannot connect" in errors


def test_a_removed_device_is_refused(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """Its key is gone."""
    enrolled = enroll(Grub(tmp_path / "root"))
    enrolled.server.operator.run("device", "remove", "--yes", enrolled.name)
    status, said, errors = enrolled.announce()
    assert (status, said) == (1, "")
    assert "refused (key-unknown)" in errors


@pytest.mark.timeout(900)
def test_every_lie_is_refused(enroll: Callable[[Installed], Enrolled], tmp_path: Path, bad: str) -> None:
    """No answer of a lying server is obeyed, and none of its words reaches a terminal raw."""
    enrolled = enroll(Grub(tmp_path / "root"))
    genuine = enrolled.file.read_bytes()
    shutil.rmtree(enrolled.machine.directory / "state")
    enrolled.machine.extra |= {"CLEVIS_ATTEST_REQUEST_TIMEOUT": "1", "CLEVIS_ATTEST_TOTAL_TIMEOUT": "3"}
    for mode in (*ANSWERS, "hang", "huge"):
        enrolled.file.write_bytes(readdressed(genuine, f"{bad}/{mode}"))
        status, said, errors = enrolled.announce()
        assert status in {1, 3}, mode
        assert said == "", mode
        assert is_printable(errors), (mode, errors)
        assert errors.startswith("tang-attest: "), (mode, errors)
    assert not Path("/tmp/owned").exists()


def test_bindings_are_found_on_disks(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """In a LUKS header, also inside sss; one announcement for each key, whatever the number of disks."""
    enrolled = enroll(Grub(tmp_path / "root"))
    config = {"url": enrolled.server.url}
    plain, shared = (Disk(enrolled.machine, "luks2", label) for label in ("plain", "shared"))
    plain.bind("attest", config)
    shared.bind("sss", {"t": 1, "pins": {"attest": [config]}})
    shutil.rmtree(enrolled.machine.directory / "state")
    for disks in ((plain,), (shared,), (plain, shared)):
        options = [part for disk in disks for part in ("-d", disk.path)]
        result = enrolled.running.predict(*options)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout.count(b"\n") == 1
    nothing = enrolled.running.predict("-d", enrolled.machine.directory / "key")
    assert nothing.returncode == 1
    assert b"nothing to announce to" in nothing.stderr


def test_an_enrollment_or_options_are_enough(enroll: Callable[[Installed], Enrolled], tmp_path: Path) -> None:
    """Without a disk: what the machine remembers, or what it is told."""
    enrolled = enroll(Grub(tmp_path / "root"))
    empty = ("-d", enrolled.machine.directory / "key")
    assert enrolled.running.predict(*empty).returncode == 0
    (state,) = (enrolled.machine.directory / "state").iterdir()
    told = json.loads(state.read_text())
    state.unlink()
    assert enrolled.running.predict(*empty).returncode == 1
    given = ("--url", told["url"][0], "--kid", told["kid"], "--ak", told["ak"])
    assert enrolled.running.predict(*given).returncode == 0


def test_only_root_may(tmp_path: Path) -> None:
    """Without root's rights there is one sentence, and no look at the TPM."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        shutil.copytree(PIN, directory, dirs_exist_ok=True)
        program = str(Path(directory) / "clevis-attest-predict")
        command = [program, "--print"]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *command]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert result.stderr == "tang-attest: only root can read the event log\n"


# --- the hook -----------------------------------------------------------------------------------------------------


def test_the_hook_says_one_line(enroll: Callable[[Installed], Enrolled], tmp_path: Path, bad: str) -> None:
    """The announcement, or the reason for none; an update goes on in any case."""
    enrolled = enroll(Grub(tmp_path / "root"))
    machine = enrolled.machine
    said = machine.run(HOOK)
    assert said.returncode == 0
    assert said.stdout.startswith(b"clevis-attest-predict: ")
    assert said.stdout.count(b"\n") == 1
    assert said.stderr == b""
    (state,) = (machine.directory / "state").iterdir()
    genuine = state.read_text()
    for url, why in (("http://127.0.0.1:1", b"cannot connect"), (f"{bad}/hang", b"gave up after 2 s")):
        state.write_text(genuine.replace(enrolled.server.url, url))
        machine.extra["CLEVIS_ATTEST_HOOK_SECONDS"] = "60" if url.endswith(":1") else "2"
        said = machine.run(HOOK)
        assert said.returncode == 0
        assert said.stdout.startswith(b"clevis-attest-predict: ")
        assert why in said.stdout
        assert said.stdout.count(b"\n") == 1


def test_the_hook_is_silent_where_nothing_is_to_be_said(machine: Machine, tmp_path: Path) -> None:
    """No log: nothing measures, or an image is being built.  No enrollment: nobody would listen."""
    log = tmp_path / "log"
    log.write_bytes(b"a log")
    for extra in ({"CLEVIS_ATTEST_EVENT_LOG": str(log)}, {"CLEVIS_ATTEST_EVENT_LOG": str(tmp_path / "none")}):
        machine.extra |= extra
        said = machine.run(HOOK)
        assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")
