"""/init of an image with systemd: what nobody measured caps the boot before systemd sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.boot.images.cache import ROOT
from tests.initrd.scene import EVERY_SHELL, Scene

pytestmark = pytest.mark.parametrize("shell", EVERY_SHELL)

SYSTEMD: Final = "8cf2644b-4b0b-428f-9387-6d876050dc67"
GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: Attributes, and a value.
SET: Final = b"\x07\0\0\0" + "rd.systemd.mask=x\0".encode("utf-16-le")
SECURE: Final = {True: b"\x06\0\0\0\x01", False: b"\x06\0\0\0\0"}


class Init(Scene):
    """A machine whose kernel has just started /init; the cap is a program that notes that it ran, and ends as told."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.log = directory / "log"
        for name in ("systemd/clevis-attest-init", "clevis-attest-look"):
            text = self.moved((ROOT / "initrd" / name).read_text())
            text = text.replace("PATH=/usr/sbin:", f"PATH={directory}/bin:/usr/sbin:")
            text = text.replace("/usr/lib/systemd", f"{directory}/systemd")
            text = text.replace("/.extra", f"{directory}/.extra")
            self.program(name.rpartition("/")[2], text, "lib")
        for name in ("mount", "umount", "modprobe"):
            self.program(name, f'#!/bin/sh\necho {name} "$@" >>{self.log}\n')
        # It would last an hour.
        self.program("sleep", "#!/bin/sh\nkill -9 $PPID\n")
        (directory / "systemd").mkdir()
        said = '"options=${SYSTEMD_EFI_OPTIONS-unset} env=${BASH_ENV-unset} $*"'
        self.program("systemd", f"#!/bin/sh\necho systemd {said} >>{self.log}\n", "systemd")
        self.efi = directory / "sys/firmware/efi/efivars"
        self.tpm_says()

    def tpm_says(self, *statuses: int) -> None:
        """Exit codes of the cap, in order, and 0 after that; with 0 or 1 there is a TPM device."""
        lines = [f"#!/bin/sh\necho cap >>{self.log}", f"case $(grep -c '^cap$' {self.log}) in"]
        lines += [f"{number}) exit {status} ;;" for number, status in enumerate(statuses, 1)]
        self.program("clevis-attest-cap", "\n".join([*lines, "esac", "exit 0", ""]), "lib")

    def file(self, path: str, content: bytes = b"") -> Path:
        """A file that the kernel or the firmware shows."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    def variable(self, name: str, vendor: str = SYSTEMD, value: bytes = SET) -> None:
        """An EFI variable."""
        self.file(f"sys/firmware/efi/efivars/{name}-{vendor}", value)

    def start(self, shell: str, *arguments: str) -> list[str]:
        """Commands that ran, in order: `cap` and `systemd ...`."""
        self.run(shell, "clevis-attest-init", *arguments)
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line.startswith(("cap", "systemd"))]

    @property
    def booted(self) -> bool:
        """True if systemd was started."""
        return "systemd options=" in self.log.read_text()


@pytest.fixture
def scene(tmp_path: Path) -> Init:
    """A machine with EFI and nothing odd."""
    scene = Init(tmp_path / "scene")
    scene.variable("SecureBoot", GLOBAL, SECURE[False])
    return scene


def test_a_boot_with_nothing_unmeasured_is_not_capped(shell: str, scene: Init) -> None:
    """systemd gets the kernel's arguments, no BASH_ENV, and takes an empty value for the EFI variable's."""
    scene.environment["BASH_ENV"] = str(scene.directory / "nothing")
    scene.file("sys/firmware/dmi/entries/11-0/raw", b"\x0b\x05\0\0\x01Default string\0\0")
    assert scene.start(shell, "splash", "three words here") == [
        "systemd options= env=unset splash three words here"
    ]
    assert scene.said == ""


def test_what_was_mounted_for_the_look_is_unmounted_again(shell: str, scene: Init) -> None:
    """systemd mounts it all as it likes to."""
    scene.start(shell)
    log = scene.log.read_text()
    mounted = set(re.findall(r"^mount -t \S+ -o \S+ \S+ (\S+)$", log, re.MULTILINE))
    assert {"/proc", "/sys", "/dev", str(scene.efi)} <= mounted
    assert mounted == set(re.findall(r"^umount (\S+)$", log, re.MULTILINE))


CHANNELS: Final = {
    "SystemdOptions": (
        f"sys/firmware/efi/efivars/SystemdOptions-{SYSTEMD}",
        SET,
        "the EFI variable SystemdOptions",
    ),
    "SMBIOS credential": (
        "sys/firmware/dmi/entries/11-0/raw",
        b"\x0b\x05\0\0\x01io.systemd.credential:tmpfiles.extra=x\0\0",
        "SMBIOS",
    ),
    "SMBIOS credential, where dmi-sysfs is not loaded": (
        "sys/firmware/dmi/tables/DMI",
        b"\x0b\x05\x0b\0\x01io.systemd.credential:a=b\0\0",
        "SMBIOS",
    ),
    "SMBIOS binary credential, not the first string": (
        "sys/firmware/dmi/entries/11-3/raw",
        b"\x0b\x05\0\0\x02Default string\0io.systemd.credential.binary:a=eA==\0\0",
        "SMBIOS",
    ),
    "SMBIOS command line": (
        "sys/firmware/dmi/entries/11-0/raw",
        b"\x0b\x05\0\0\x01io.systemd.stub.kernel-cmdline-extra=systemd.debug_shell\0\0",
        "SMBIOS",
    ),
    "fw_cfg": (
        "sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/tmpfiles.extra/raw",
        b"x",
        "fw_cfg",
    ),
    "ESP": (".extra/credentials/x.cred", b"x", "the EFI system partition"),
    "ESP, for every system": (".extra/global_credentials/x.cred", b"x", "the EFI system partition"),
    "ESP extension": (".extra/sysext/x.raw", b"x", "the EFI system partition"),
    "ESP configuration": (".extra/confext/x.raw", b"x", "the EFI system partition"),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_unmeasured_channel_caps_before_systemd(shell: str, scene: Init, channel: str) -> None:
    """One sentence names the channel, one says that the boot is capped, and systemd comes after it."""
    path, content, named = CHANNELS[channel]
    scene.file(path, content)
    ran = scene.start(shell)
    assert [line.split()[0] for line in ran] == ["cap", "systemd"]
    assert named in scene.said
    assert "this boot is capped" in scene.said
    assert (scene.run_directory / "unmeasured").read_text().strip() in channel.replace("credential", "")
    # /run is a file system of its own before something is kept there.
    assert "mount -t tmpfs -o mode=0755,nosuid,nodev,size=20% tmpfs /run" in scene.log.read_text()


def test_every_channel_has_its_sentence(shell: str, scene: Init) -> None:
    """Together they cap once."""
    for path, content, _ in CHANNELS.values():
        scene.file(path, content)
    assert [line.split()[0] for line in scene.start(shell)] == ["cap", "systemd"]
    for *_, named in CHANNELS.values():
        assert named in scene.said
    kept = (scene.run_directory / "unmeasured").read_text().split()
    assert kept == ["SystemdOptions", "SMBIOS", "fw_cfg", "ESP"]


def test_secure_boot_makes_systemd_ignore_its_variable(shell: str, scene: Init) -> None:
    """So it does not cap either; HibernateLocation counts under Secure Boot, too, where the image can resume."""
    scene.variable("SecureBoot", GLOBAL, SECURE[True])
    scene.variable("SystemdOptions")
    scene.variable("HibernateLocation")
    assert [line.split()[0] for line in scene.start(shell)] == ["systemd"]
    scene.log.unlink()
    scene.program("systemd-hibernate-resume", "#!/bin/sh\n", "systemd")
    assert [line.split()[0] for line in scene.start(shell)] == ["cap", "systemd"]
    assert "the EFI variable HibernateLocation" in scene.said


def test_a_policy_over_pcr_12_and_13_lets_the_system_partition_pass_credentials(
    shell: str, scene: Init
) -> None:
    """systemd-stub measured them; the image says that the policy looks."""
    scene.file(".extra/credentials/x.cred", b"x")
    scene.file("etc/clevis-attest/esp-is-measured")
    assert [line.split()[0] for line in scene.start(shell)] == ["systemd"]


def test_a_tpm_behind_a_driver_that_is_not_loaded_is_found(shell: str, scene: Init) -> None:
    """Nothing has loaded the driver of its bus so early: every device's driver is loaded, and the cap is tried again."""
    scene.variable("SystemdOptions")
    scene.tpm_says(3)
    scene.file("sys/bus/pci/devices/0000:00:1f.5/modalias", b"pci:v00008086d0000A324\n")
    assert [line.split()[0] for line in scene.start(shell)] == ["cap", "cap", "systemd"]
    assert "modprobe -q -b pci:v00008086d0000A324" in scene.log.read_text()


@pytest.mark.parametrize(
    ("statuses", "device", "said"),
    [
        ((1, 1), True, "the TPM did not take the cap"),
        ((1, 1), False, "the TPM did not take the cap"),
        ((3, 3), False, "there is no TPM to cap"),
        ((2, 2), True, "the TPM did not take the cap"),
    ],
)
def test_without_the_cap_there_is_no_boot(
    shell: str, scene: Init, statuses: tuple[int, ...], device: bool, said: str
) -> None:
    """The console says why; systemd is never started."""
    scene.variable("SystemdOptions")
    scene.tpm_says(*statuses)
    if device:
        scene.file("dev/tpmrm0")
    scene.start(shell)
    assert "no boot: something that nobody measured can steer it (SystemdOptions)" in scene.said
    assert said in scene.said
    assert not scene.booted


def test_an_image_for_machines_without_a_tpm_boots(shell: str, scene: Init) -> None:
    """attest_shell_without_tpm=yes: there is nothing that a shell could ask for."""
    scene.variable("SystemdOptions")
    scene.tpm_says(3, 3)
    scene.file("etc/clevis-attest/shell-without-tpm")
    scene.start(shell)
    assert scene.booted
    assert "there is no TPM 2.0, so nothing was capped" in scene.said
