"""The units of an initrd with systemd, as `make -C initrd install-systemd` puts them there, judged by systemd itself."""

from __future__ import annotations

import os
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Final

import pytest

from tests.boot.images.cache import ROOT

#: Units that systemd's generators make of rd.luks.name=...=root root=UUID=..., with what matters for the order.
_GENERATED: Final = {
    "sysroot.mount": (
        "[Unit]\nBefore=initrd-root-fs.target\nAfter=blockdev@dev-mapper-root.target systemd-fsck-root.service\n"
        "Requires=systemd-fsck-root.service\n[Mount]\nWhat=/dev/mapper/root\nWhere=/sysroot\n"
    ),
    "systemd-fsck-root.service": (
        "[Unit]\nDefaultDependencies=no\nAfter=initrd-root-device.target local-fs-pre.target\n"
        "Before=shutdown.target\nConflicts=shutdown.target\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    ),
    "systemd-cryptsetup@root.service": (
        "[Unit]\nDefaultDependencies=no\nAfter=cryptsetup-pre.target\nBefore=cryptsetup.target\n"
        "[Service]\nType=oneshot\nExecStart=/bin/true\n"
    ),
    "initrd-root-fs.target.requires/sysroot.mount": "",
    "cryptsetup.target.requires/systemd-cryptsetup@root.service": "",
    # Nothing but dracut's makes it, and what is ours comes after it.
    "dracut-initqueue.service": (
        "[Unit]\nDefaultDependencies=no\nBefore=remote-fs-pre.target\nWants=remote-fs-pre.target\n"
        "After=systemd-udev-trigger.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    ),
    "dracut-pre-mount.service": (
        "[Unit]\nDefaultDependencies=no\nBefore=initrd-root-fs.target sysroot.mount systemd-fsck-root.service\n"
        "After=dracut-initqueue.service cryptsetup.target\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    ),
    "dracut-mount.service": (
        "[Unit]\nDefaultDependencies=no\nAfter=initrd-root-fs.target initrd-parse-etc.service dracut-pre-mount.service\n"
        "[Service]\nType=oneshot\nExecStart=/bin/true\n"
    ),
    "dracut-pre-pivot.service": (
        "[Unit]\nDefaultDependencies=no\nAfter=initrd.target initrd-parse-etc.service sysroot.mount dracut-mount.service\n"
        "Before=initrd-cleanup.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    ),
}
#: Units that read, check, mount or resume a disk, or go on with what was mounted.
_BEHIND_THE_CAP: Final = (
    *("sysroot.mount", "sysroot-.mount", "sysusr-.mount", "initrd-root-fs.target", "initrd-usr-fs.target"),
    *("initrd-parse-etc.service", "initrd-switch-root.service"),
    *("systemd-fsck-root.service", "systemd-fsck@.service"),
    *("systemd-hibernate-resume.service", "systemd-hibernate-resume@.service"),
    *("dracut-pre-mount.service", "dracut-mount.service", "dracut-pre-pivot.service"),
)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of our units, with the generators' beside them; their programs are where they say."""
    root = tmp_path_factory.mktemp("units")
    command = ["make", "--silent", "-C", str(ROOT / "initrd"), "install-systemd", f"DESTDIR={root}"]
    subprocess.run(command, check=True, capture_output=True)
    ours = root / "usr/lib/clevis-attest"
    for path in (ours / "systemd").rglob("*"):
        if path.is_file():
            path.write_text(path.read_text().replace("=/usr/lib/clevis-attest", f"={ours}"))
    for name, text in _GENERATED.items():
        path = ours / "systemd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text)
        else:
            path.symlink_to(f"../{path.name}")
    return ours / "systemd"


def test_systemd_accepts_them_and_finds_no_cycle(units: Path) -> None:
    """A cycle would be broken by dropping a job, and the cap may be the one."""
    verified = subprocess.run(
        [
            *("systemd-analyze", "verify", "--man=no", "initrd.target", "initrd-switch-root.target"),
            *("sysroot.mount", "clevis-attest-cap.service", "clevis-attest-root.service"),
            *("dracut-mount.service", "dracut-pre-pivot.service", "initrd-cleanup.service"),
        ],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = (verified.stdout + verified.stderr).replace(str(units), "")
    assert "cycle" not in said
    assert not [line for line in said.splitlines() if "clevis-attest" in line], said


def drop_ins(units: Path, unit: str) -> ConfigParser:
    """All drop-ins of *unit*, as one."""
    parser = ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's names have capital letters
    parser.read(sorted((units / f"{unit}.d").glob("*.conf")))
    return parser


@pytest.mark.parametrize("unit", _BEHIND_THE_CAP)
def test_what_touches_a_disk_asserts_the_cap(units: Path, unit: str) -> None:
    """Wanted, waited for, and asserted: a cap that is masked fails what comes after it."""
    (text,) = [path.read_text() for path in (units / f"{unit}.d").glob("40-*.conf")]
    lines = text.splitlines()
    for line in (
        "Wants=clevis-attest-cap.service",
        "After=clevis-attest-cap.service",
        "AssertPathExists=/run/clevis-attest/capped",
    ):
        assert line in lines


def test_no_quote_is_made_before_systemd_has_extended_its_pcrs(units: Path) -> None:
    """A quote from before has other values than one from after: the disk would open or not by chance."""
    (text,) = [path.read_text() for path in (units / "clevis-luks-askpass.service.d").glob("*.conf")]
    after = {unit for line in text.splitlines() if line.startswith("After=") for unit in line[6:].split()}
    assert {
        "systemd-pcrphase-initrd.service",
        "systemd-pcrosseparator.service",
        "systemd-pcrnvdone.service",
    } <= after


def test_every_volume_comes_before_the_cap(units: Path) -> None:
    """Also one that cryptsetup.target does not wait for; otherwise it would be refused as capped."""
    unit = drop_ins(units, "systemd-cryptsetup@.service")
    assert unit["Unit"]["Before"] == "clevis-attest-cap.service"


@pytest.mark.parametrize("unit", ["dracut-pre-pivot.service", "initrd-switch-root.service"])
def test_the_root_is_checked_before_anything_of_it_runs(units: Path, unit: str) -> None:
    """In the unit itself, which nobody masks without losing what it does; and what fails ends in the emergency."""
    found = drop_ins(units, unit)
    assert found["Service"]["ExecStartPre"].endswith("/clevis-attest-root-check /sysroot")
    assert found["Unit"]["OnFailure"] == "emergency.target"


@pytest.mark.parametrize("unit", ["systemd-hibernate-resume.service", "systemd-hibernate-resume@.service"])
def test_nothing_is_resumed(units: Path, unit: str) -> None:
    """An image that has systemd's program all the same runs ours instead of it."""
    text = (units / f"{unit}.d/41-clevis-attest-resume.conf").read_text()
    starts = [line for line in text.splitlines() if line.startswith("ExecStart")]
    assert starts[0] == "ExecStart="
    assert len(starts) == 2
    assert starts[1].endswith("/clevis-attest-no-resume")


def test_a_root_that_was_refused_and_unmounted_does_not_count_as_one_to_come(units: Path) -> None:
    """The target asserts what the check wrote; only a check that found nothing mounted writes that there is more to come."""
    text = (units / "initrd-root-fs.target.d/41-clevis-attest-root.conf").read_text()
    asserted = [line for line in text.splitlines() if line.startswith("Assert")]
    run = "/run/clevis-attest"
    assert asserted == [f"AssertPathExists=|{run}/root-checked", f"AssertPathExists=|{run}/root-later"]


@pytest.mark.parametrize("name", ["cap", "root"])
def test_a_failure_of_ours_ends_in_the_emergency(units: Path, name: str) -> None:
    """At once, whatever else is wanted and not required."""
    assert "OnFailure=emergency.target\n" in (units / f"clevis-attest-{name}.service").read_text()
