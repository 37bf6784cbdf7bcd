"""Enrolling records the boot that runs; where the next one is another, the pin says so while somebody is there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import PIN, Disk
from tests.pin.predict.boots import SELECTION, Grub, Installed, SystemdBoot, Unified
from tests.pin.predict.running import Running

WITH_IMAGE = "sha256:0,4,7,11,15"


def rebuilt(installed: Installed) -> str:
    """Build the initrd again, as a package of the hook does; return the PCR that shows it."""
    if isinstance(installed, Grub):
        installed.initrds = {"6.1.0-28": b"an initrd with the hook"}
    elif isinstance(installed, SystemdBoot):
        installed.initrd = b"an initrd with the hook"
    elif isinstance(installed, Unified):
        installed.sections[".initrd"] = b"an initrd with the hook"
    installed.install()
    return "PCR 11" if isinstance(installed, Unified) else "PCR 9"


@pytest.mark.slow
def test_a_disk_that_is_bound_before_the_new_initrd_ran(
    run_machine: Callable[..., Running], server: Server, name: str, tmp_path: Path
) -> None:
    """The warning comes true, and what it says to do helps: the next boot is refused until it is approved."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    machine = running.machine
    machine.extra["CLEVIS_ATTEST_ROOT"] = str(grub.root)
    rebuilt(grub)
    disk = Disk(machine, "luks2")
    config = {"url": server.url, "name": name, "thp": server.operator.thp}
    said = disk.bind("attest", {**config, "token": server.operator.token(name, "--selection", SELECTION)})
    assert "warning (boot-outdated): the next boot will not be this one" in said
    assert "PCR 9 (/boot/initrd.img-6.1.0-28)" in said
    assert f"run 'tang-attest approve {name}' on the server" in said
    assert "PCR 4" not in said
    passphrase = disk.passphrase()
    assert disk.opens_with(passphrase)
    # A further disk records nothing.
    assert "warning" not in Disk(machine, "luks2", "second").bind("attest", config)
    running.reboot()
    assert disk.passphrase() == b""
    server.operator.run("approve", name, "--yes")
    assert disk.passphrase() == passphrase
    assert machine.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Grub, SystemdBoot, Unified])
def test_the_boot_that_is_installed_is_no_news_and_another_one_is(
    kind: Callable[[Path], Installed],
    run_machine: Callable[..., Running],
    server: Server,
    name: str,
    tmp_path: Path,
) -> None:
    """Each loader's files are compared with what it measured, whatever their dates are; enrolling never fails by it."""
    installed = kind(tmp_path / "root")
    machine = run_machine(installed).machine
    machine.extra["CLEVIS_ATTEST_ROOT"] = str(installed.root)
    (installed.root / "proc" / "sys" / "kernel").mkdir(parents=True)
    installed.write("proc/stat", "btime 1\n")
    installed.write("proc/sys/kernel/osrelease", "6.1.0-28\n")
    selection = WITH_IMAGE if kind is Unified else SELECTION

    def enroll() -> tuple[str, dict[str, str] | None]:
        token = server.operator.token(name, "--selection", selection)
        config = {"url": server.url, "name": name, "token": token, "thp": server.operator.thp}
        done = machine.run("clevis", "attest", "enroll", "--json", json.dumps(config))
        assert done.returncode == 0, done.stderr.decode()
        return done.stderr.decode(), json.loads(done.stdout).get("warning")

    said, warning = enroll()
    assert "warning" not in said
    assert warning is None
    pcr = rebuilt(installed)
    server.operator.run("device", "remove", name, "--yes")
    said, warning = enroll()
    assert warning is not None
    assert warning["code"] == "boot-outdated"
    assert pcr in warning["sentence"]
    assert f"{warning['sentence']} {warning['action']}" in said


# --- without an event log ----------------------------------------------------------------------------------------

BOOTED_AT = 1_700_000_000
ENCRYPTED = "CRYPT-LUKS2-00112233445566778899aabbccddeeff-root\n"


@dataclass
class Unmeasured:
    """A machine whose kernel shows no event log: the dates of its files and the marks of its initrd have to tell."""

    root: Path

    def __post_init__(self) -> None:
        self.write("proc/stat", f"cpu 1 2 3\nbtime {BOOTED_AT}\nprocesses 4\n")
        self.write("proc/sys/kernel/osrelease", "6.1.0-28-arm64\n")

    def write(self, name: str, content: str = "", seconds_after: int = -60) -> Path:
        """A file that was written so long after this boot began."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (BOOTED_AT + seconds_after,) * 2)
        return path

    def root_on(self, uuid: str) -> None:
        """The root is a file system on a logical volume of device dm-0, which lies on another one with *uuid*."""
        self.write("proc/self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw\n"
                   "29 1 253:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro\n")  # fmt: skip
        self.write("dev/dm-1")
        (self.root / "dev" / "mapper").mkdir(parents=True)
        (self.root / "dev" / "mapper" / "vg-root").symlink_to("../dm-1")
        self.write("sys/class/block/dm-1/dm/uuid", "LVM-0123\n")
        self.write("sys/class/block/dm-0/dm/uuid", uuid)
        (self.root / "sys/class/block/dm-1/slaves/dm-0").mkdir(parents=True)

    def warning(self, enrolled: str = "now") -> str:
        """The code that the pin warns with; empty if it says nothing."""
        script = f"""
            set -u
            here={PIN} lib={PIN}/lib enrolled={enrolled} e_name=pi-b e_selection=sha256:0,9,15 signed_cap=''
            . $lib/clevis-attest-setup-functions
            . $lib/clevis-attest-boot-functions
            attest_warn_boot
            printf %s "$boot_code"
        """
        result = subprocess.run(
            ["bash", "-c", script],
            env={
                "PATH": os.environ["PATH"],
                "CLEVIS_ATTEST_ROOT": str(self.root),
                "CLEVIS_ATTEST_RUN_DIR": str(self.root / "run" / "clevis-attest"),
                "CLEVIS_ATTEST_EVENT_LOG": str(self.root / "no-log"),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert bool(result.stdout) == (f"tang-attest: warning ({result.stdout}): " in result.stderr)
        assert result.stdout or not result.stderr
        return result.stdout


@pytest.fixture
def unmeasured(tmp_path: Path) -> Unmeasured:
    """One with no initrd yet."""
    return Unmeasured(tmp_path / "root")


@pytest.mark.parametrize(
    "image",
    [
        "boot/initrd.img-6.1.0-28-arm64",
        "boot/initramfs-6.1.0-28-arm64.img",
        "boot/efi/EFI/Linux/0123-6.1.0-28-arm64.efi",
        "efi/EFI/Linux/debian-6.1.0-28-arm64+3.efi",
        "boot/efi/0123456789abcdef/6.1.0-28-arm64/initrd",
    ],
)
def test_an_image_that_was_written_since_the_boot_is_another_one(unmeasured: Unmeasured, image: str) -> None:
    """The one of the kernel that runs, of initramfs-tools, dracut, kernel-install and ukify; older ones are no news."""
    unmeasured.write("boot/initrd.img-6.1.0-27-arm64", seconds_after=600)
    unmeasured.write(image)
    assert unmeasured.warning() == ""
    unmeasured.write(image, seconds_after=600)
    assert unmeasured.warning() == "boot-outdated"
    assert unmeasured.warning(enrolled="before") == ""


def test_a_generation_of_nixos_that_was_not_booted(unmeasured: Unmeasured) -> None:
    """The store's files have no dates; the profile's initrd and kernel are compared with those that were booted."""
    for generation in ("1", "2"):
        unmeasured.write(f"nix/store/initrd-{generation}/initrd")
        directory = unmeasured.root / f"nix/store/system-{generation}"
        directory.mkdir()
        (directory / "initrd").symlink_to(f"../initrd-{generation}/initrd")
        (directory / "kernel").symlink_to("../../../proc/stat")
    profile = unmeasured.root / "nix/var/nix/profiles/system"
    profile.parent.mkdir(parents=True)
    profile.symlink_to(unmeasured.root / "nix/store/system-1")
    (unmeasured.root / "run").mkdir()
    (unmeasured.root / "run/booted-system").symlink_to(unmeasured.root / "nix/store/system-1")
    assert unmeasured.warning() == ""
    profile.unlink()
    profile.symlink_to(unmeasured.root / "nix/store/system-2")
    assert unmeasured.warning() == "boot-outdated"


HOOKS = (
    "usr/share/initramfs-tools/hooks/clevis-attest",
    "usr/lib/dracut/modules.d/50clevis-pin-attest/module-setup.sh",
)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_initrd_without_the_hook_that_is_installed(unmeasured: Unmeasured, hook: str) -> None:
    """Installed, and no image was built with it: this boot has no mark of the attest pin."""
    unmeasured.root_on(ENCRYPTED)
    assert unmeasured.warning() == ""
    unmeasured.write(hook)
    assert unmeasured.warning() == "initrd-without-attest"


@pytest.mark.parametrize("mark", ["capped", "cap-events", "looked", "unmeasured", "root-checked"])
def test_each_mark_of_the_initrd_shows_the_hook(unmeasured: Unmeasured, mark: str) -> None:
    """Older images leave fewer marks than newer ones."""
    unmeasured.root_on(ENCRYPTED)
    unmeasured.write(HOOKS[0])
    unmeasured.write(f"run/clevis-attest/{mark}")
    assert unmeasured.warning() == ""


def test_an_initrd_of_a_root_in_the_clear_has_nothing_to_do(unmeasured: Unmeasured) -> None:
    """Its hook is quiet, so a missing mark means nothing; the same where nobody knows what the root lies on."""
    unmeasured.write(HOOKS[0])
    assert unmeasured.warning() == ""
    unmeasured.root_on("CRYPT-PLAIN-swap\n")
    assert unmeasured.warning() == ""


def test_a_system_that_tells_nothing_is_not_warned_of(tmp_path: Path) -> None:
    """No /proc, no files."""
    (tmp_path / "root").mkdir()
    machine = Unmeasured(tmp_path / "root")
    for name in ("stat", "sys/kernel/osrelease"):
        (machine.root / "proc" / name).unlink()
    assert machine.warning() == ""
