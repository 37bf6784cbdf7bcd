"""clevis-attest-predict: the values of the next boot, and what is said where they cannot be known."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pin.machine import PIN, Machine
from tests.pin.predict.boots import MACHINE, Grub, SystemdBoot, Unified, pe
from tests.pin.predict.running import Running, values_of
from tests.protocol.eventlog import writer as w

pytestmark = pytest.mark.slow

PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")


# --- GRUB ---------------------------------------------------------------------------------------------------------


def test_grub_nothing_changed(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """The next boot is as this one; --print prints what tpm2 pcrread would, and the server can read it."""
    running = run_machine(Grub(tmp_path / "root"))
    assert running.predicted().values == values_of(running.installed.log())
    assert running.predicted().changed == {}
    printed = running.predict("--print", "--selection", "sha256:0,4,7,8,9").stdout
    assert printed == running.machine.tpm.run("tpm2", "pcrread", "sha256:0,4,7,8,9").stdout


def test_grub_a_rebuilt_initrd_changes_pcr_9(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """update-initramfs -u: the same name, other content."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    grub.initrds["6.1.0-28"] = b"rebuilt"
    grub.install()
    prediction = running.predicted()
    assert prediction.values == values_of(grub.log())
    assert prediction.changed == {9: "/boot/initrd.img-6.1.0-28"}


@pytest.mark.parametrize("kernel_in_pcr4", [0, 2], ids=["", "secure boot"])
def test_grub_a_new_kernel(run_machine: Callable[..., Running], tmp_path: Path, kernel_in_pcr4: int) -> None:
    """A new entry, a longer submenu, other files; with Secure Boot shim and the firmware measure the kernel too."""
    grub = Grub(tmp_path / "root", kernel_in_pcr4=kernel_in_pcr4)
    running = run_machine(grub)
    grub.versions = ["6.1.0-29", "6.1.0-28"]
    grub.install()
    prediction = running.predicted()
    assert prediction.values == values_of(grub.log())
    assert set(prediction.changed) == ({4, 8, 9} if kernel_in_pcr4 else {8, 9})
    assert "/boot/vmlinuz-6.1.0-29" in prediction.changed[9]
    assert prediction.printed["label"] == "kernel 6.1.0-29"


def test_grub_another_command_line(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """/etc/default/grub and update-grub."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    grub.options = "quiet mitigations=auto"
    grub.install()
    prediction = running.predicted()
    assert prediction.values == values_of(grub.log())
    assert "mitigations=auto" in prediction.changed[8]


def test_grub_without_the_old_kernel(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """The submenu had two kernels; apt autoremove leaves the newer one."""
    grub = Grub(tmp_path / "root", versions=["6.1.0-29", "6.1.0-28"])
    running = run_machine(grub)
    grub.versions = ["6.1.0-29"]
    grub.install()
    prediction = running.predicted()
    assert prediction.values == values_of(grub.log())
    assert set(prediction.changed) == {8, 9}  # grub.cfg is a file that was read, too


def refuse_timeout(grub: Grub) -> None:
    grub.timeout = 1


def refuse_command(grub: Grub) -> None:
    grub.write("boot/grub/grub.cfg", grub.config() + "insmod chain\n")


def refuse_loop(grub: Grub) -> None:
    grub.write("boot/grub/grub.cfg", grub.config() + "for x in 1 2; do\n  echo $x\ndone\n")


def refuse_shape(grub: Grub) -> None:
    grub.write("boot/grub/grub.cfg", grub.config().replace("\tinsmod part_gpt\n", "", 1))


def refuse_menu(grub: Grub) -> None:
    grub.title = "Another system"


def refuse_variable(grub: Grub) -> None:
    grub.options = "quiet $from_nowhere"


def refuse_quotes(grub: Grub) -> None:
    grub.options = 'quiet dyndbg=\\"file drivers/usb/core/* +p\\"'


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (refuse_timeout, "grub.cfg has changed outside its menu entries: set timeout=5"),
        (refuse_command, "grub.cfg has a command that was not run in this boot: insmod chain"),
        (refuse_loop, "line 68 of grub.cfg is not understood"),
        (refuse_shape, "the first entry of grub.cfg has other commands than before"),
        (refuse_menu, "the menu of grub.cfg has other entries"),
        (refuse_variable, "a variable in grub.cfg is not known"),
        (refuse_quotes, "the command line in grub.cfg has quotes"),
    ],
)
def test_grub_what_is_not_understood_is_not_guessed(
    run_machine: Callable[..., Running], tmp_path: Path, change: Callable[[Grub], None], why: str
) -> None:
    """PCR 8 and 9 cannot be predicted, and the sentence says what in grub.cfg it is; the others can."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    before = grub.config()
    change(grub)
    if grub.config() != before:
        grub.install()
    prediction = running.predicted()
    assert set(prediction.unpredictable) == {8, 9}
    assert why in prediction.unpredictable[8]
    assert prediction.changed == {}


def test_grub_a_kernel_in_pcr_4_depends_on_its_script(
    run_machine: Callable[..., Running], tmp_path: Path
) -> None:
    """With Secure Boot PCR 4 has the kernel, so it is not known either where grub.cfg is not understood."""
    grub = Grub(tmp_path / "root", kernel_in_pcr4=2)
    running = run_machine(grub)
    grub.timeout = 1
    grub.versions = ["6.1.0-29", "6.1.0-28"]
    grub.install()
    assert set(running.predicted().unpredictable) == {4, 8, 9}


def test_grub_an_entry_that_is_not_the_first(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """Somebody chose another entry by hand; with a new grub.cfg, what comes next is not what is in the log."""
    grub = Grub(tmp_path / "root")
    grub.install()
    chosen = [
        w.Measurement(e.pcr, e.type, e.data.replace(b"setparams Debian", b"setparams Chosen"),
                      e.measured and e.measured.replace(b"setparams Debian", b"setparams Chosen"))
        for e in grub.measured()
    ]  # fmt: skip
    grub.measured = lambda: chosen  # type: ignore[method-assign]
    running = run_machine(grub)
    grub.write("boot/grub/grub.cfg", grub.config().replace("quiet", "loud"))
    assert "was not that of the first entry" in running.predicted().unpredictable[8]


def test_grub_its_environment_decides(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """grub-reboot writes to grubenv: another entry comes next."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    grub.write("boot/grub/grubenv", "# GRUB Environment Block\nnext_entry=1\n##")
    prediction = running.predicted()
    assert "/boot/grub/grubenv has changed" in prediction.unpredictable[8]


def test_grub_a_missing_file(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """The next boot will not find it either; nothing is made up."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    (grub.root / "boot/initrd.img-6.1.0-28").unlink()
    prediction = running.predicted()
    assert prediction.unpredictable == {9: "/boot/initrd.img-6.1.0-28, which GRUB read, is not there"}


def test_grub_of_another_version(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """The package was upgraded: PCR 4."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    grub.write("boot/efi/EFI/debian/grubx64.efi", pe({".text": b"grub 2"}))
    assert running.predicted().changed == {4: "boot loader /boot/efi/EFI/debian/grubx64.efi"}


def test_grub_starts_what_its_configuration_says(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """A caller who has another kernel in mind is told."""
    grub = Grub(tmp_path / "root")
    running = run_machine(grub)
    assert running.predicted("--kernel", grub.root / "boot/vmlinuz-6.1.0-28").unpredictable == {}
    other = grub.write("other", b"another kernel")
    assert "does not start" in running.predicted("--kernel", other).unpredictable[9]


# --- systemd-boot -------------------------------------------------------------------------------------------------


def test_systemd_boot_takes_the_newest_entry(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """kernel-install added a kernel."""
    boot = SystemdBoot(tmp_path / "root")
    running = run_machine(boot)
    unchanged = running.predicted()
    assert unchanged.changed == {}
    assert unchanged.printed["label"] == "kernel 6.1.0-28"
    boot.version, boot.kernel, boot.initrd, boot.options = (
        "6.1.0-29",
        b"linux 29",
        b"initrd 29",
        "root=x loud",
    )
    boot.install()
    prediction = running.predicted()
    assert prediction.values == values_of(boot.log())
    assert set(prediction.changed) == {4, 9, 12}
    assert prediction.printed["notes"] == [
        f"the next boot is taken to be that of /boot/efi/loader/entries/{MACHINE}-6.1.0-29.conf"
    ]
    assert prediction.printed["label"] == "kernel 6.1.0-29"


def test_systemd_boot_takes_the_default_of_loader_conf(
    run_machine: Callable[..., Running], tmp_path: Path
) -> None:
    """A pattern in loader.conf keeps the old kernel the default."""
    boot = SystemdBoot(tmp_path / "root")
    running = run_machine(boot)
    expected = values_of(boot.log())
    boot.version = "6.1.0-29"
    boot.install()
    boot.write("boot/efi/loader/loader.conf", "timeout 3\ndefault *-6.1.0-28*\n")
    assert running.predicted().values == expected


def test_systemd_boot_a_given_kernel(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """As NixOS calls it: files of the next generation, whose copies are on the EFI system partition."""
    boot = SystemdBoot(tmp_path / "root")
    running = run_machine(boot)
    boot.version, boot.initrd, boot.options = (
        "6.1.0-29/nixos",
        b"the initrd of a generation",
        "init=/nix/store/x",
    )
    boot.install()
    store = boot.write("nix/initrd", boot.initrd)
    kernel = boot.root / "boot/efi/6.1.0-29/nixos/linux"
    prediction = running.predicted("--kernel", kernel, "--initrd", store, "--cmdline", boot.options)
    assert prediction.values == values_of(boot.log())
    shutil.rmtree(boot.root / "boot/efi/6.1.0-29/nixos")
    elsewhere = boot.write("nix/kernel", pe({".text": boot.kernel}))
    prediction = running.predicted("--kernel", elsewhere, "--initrd", store, "--cmdline", boot.options)
    assert "is not on the EFI system partition" in prediction.unpredictable[12]
    assert set(prediction.unpredictable) == {9, 12}


def test_systemd_boot_on_a_partition_that_is_not_mounted(
    run_machine: Callable[..., Running], tmp_path: Path
) -> None:
    """Without its files nothing of PCR 4, 9 and 12 is known."""
    boot = SystemdBoot(tmp_path / "root")
    running = run_machine(boot)
    shutil.rmtree(boot.esp)
    prediction = running.predicted()
    assert set(prediction.unpredictable) == {4, 9, 12}
    assert "is the EFI system partition mounted?" in prediction.unpredictable[4]


def test_systemd_boot_a_command_line_that_was_typed(
    run_machine: Callable[..., Running], tmp_path: Path
) -> None:
    """In this boot somebody edited the options at the menu: the next boot has those of the entry again."""
    boot = SystemdBoot(tmp_path / "root")
    boot.options = "root=/dev/mapper/root ro quiet single"
    running = run_machine(boot)
    boot.options = "root=/dev/mapper/root ro quiet"
    boot.install()
    assert running.predicted().values == values_of(boot.log())


# --- unified kernel images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phases", [(), PHASES, PHASES[2:]], ids=["none", "initrd", "system"])
def test_uki_another_image(
    run_machine: Callable[..., Running], tmp_path: Path, phases: tuple[str, ...]
) -> None:
    """PCR 4 twice, 9 and 11; in PCR 11 the initrd's phase, if systemd measures it there."""
    image = Unified(tmp_path / "root")
    running = run_machine(image, *phases)
    expected = ["enter-initrd"] if phases == PHASES else []
    assert running.predicted().values == values_of(image.log(), *expected)
    image.sections[".cmdline"] = b"root=/dev/mapper/root loud\n"
    image.sections[".initrd"] = b"another initrd"
    image.sections[".splash"] = b"a picture"
    target = image.write("new.efi", image.image())
    prediction = running.predicted("--uki", target, "--label", "image 42")
    assert prediction.values == values_of(image.log(), *expected)
    assert set(prediction.changed) == {4, 9, 11}
    assert prediction.printed["label"] == "image 42"
    image.install()
    assert running.predicted().values == prediction.values


def test_uki_pcr_11_is_that_of_systemd_measure(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """systemd's own program computes the same."""
    image = Unified(tmp_path / "root")
    running = run_machine(image, *PHASES)
    image.sections[".cmdline"] = b"root=/dev/sda"
    image.install()
    command = ["/usr/lib/systemd/systemd-measure", "calculate", "--bank=sha256", "--phase=enter-initrd"]
    for name in ("linux", "osrel", "cmdline", "initrd"):
        file = image.write(f"parts/{name}", image.sections[f".{name}"])
        command.append(f"--{name}={file}")
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"11:sha256={running.predicted().values[11]}\n" in told


def test_uki_a_newer_stub_measures_more(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """.uname is measured from version 254 on."""
    image = Unified(tmp_path / "root")
    running = run_machine(image)
    old = running.predicted().values[11]
    image.sections[".uname"] = b"6.1.0-29"
    assert running.predicted("--uki", image.write("252.efi", image.image())).values[11] == old
    image.sections[".sdmagic"] = b"#### LoaderInfo: systemd-stub 254.5-1 ####"
    assert running.predicted("--uki", image.write("254.efi", image.image())).values[11] != old


@pytest.mark.parametrize(
    ("section", "pcr", "why"),
    [
        (".profile", 11, "depends on the hardware or the profile"),
        (".pcrpkey", 9, "the stub adds what is in .pcrpkey"),
    ],
)
def test_uki_with_what_is_not_understood(
    run_machine: Callable[..., Running], tmp_path: Path, section: str, pcr: int, why: str
) -> None:
    """It says which section it is."""
    image = Unified(tmp_path / "root")
    running = run_machine(image)
    image.sections[section] = b"content"
    image.install()
    prediction = running.predicted()
    assert set(prediction.unpredictable) == {pcr}
    assert why in prediction.unpredictable[pcr]


def test_uki_with_something_beside_it(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """Credentials and add-ons are measured, too, and not followed."""
    image = Unified(tmp_path / "root")
    running = run_machine(image)
    image.write("boot/efi/EFI/BOOT/bootx64.efi.extra.d/secret.cred", b"a credential")
    assert set(running.predicted().unpredictable) == {9, 12, 13}


def test_uki_whose_measurements_are_other_ones(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """The image that runs is there, and PCR 11 is not what it should be: then the next one's is not known either."""
    image = Unified(tmp_path / "root")
    odd = [e if e.pcr != 11 else w.Measurement(11, e.type, e.data, b"odd") for e in image.measured()]
    image.measured = lambda: odd  # type: ignore[method-assign]
    running = run_machine(image)
    assert "not what this program would expect" in running.predicted().unpredictable[11]


def test_uki_brings_its_own_kernel(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """A kernel or a command line for it is a wrong command line."""
    running = run_machine(Unified(tmp_path / "root"))
    for options in (("--cmdline", "quiet"), ("--cmdline", "quiet", "--uki", PIN / "Makefile")):
        result = running.predict("--print", *options)
        assert result.returncode == 2
        assert b"unified kernel image" in result.stderr


# --- the running system -----------------------------------------------------------------------------------------------


def test_a_pcr_that_the_log_does_not_explain(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """Something extended PCR 8 and 11 after the boot; of the cap PCR this is expected."""
    running = run_machine(Grub(tmp_path / "root"))
    for pcr in (8, 11, 15):
        running.machine.tpm.run("tpm2", "pcrextend", f"{pcr}:sha256={'5a' * 32}")
    prediction = running.predicted()
    assert set(prediction.unpredictable) == {8, 11}
    assert "something extended it after the boot" in prediction.unpredictable[8]
    assert "other than systemd-pcrphase" in prediction.unpredictable[11]
    assert prediction.values[15] == "0" * 64


def test_without_a_log_or_a_tpm(run_machine: Callable[..., Running], tmp_path: Path) -> None:
    """One sentence each."""
    running = run_machine(Grub(tmp_path / "root"))
    (running.machine.directory / "event-log").unlink()
    result = running.predict("--print")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"does the firmware measure" in result.stderr
    running.boot()
    running.machine.tpm.stop()
    result = running.predict("--print")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"no TPM answers" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--unknown",),
        ("--kernel",),
        ("--kernel", "/nowhere"),
        ("--label", "two\nlines"),
        ("--label", "x" * 65),
        ("--selection", "sha1:0"),
        ("--kid", "short"),
        ("--url", "http://127.0.0.1:1"),
        ("--kid", "x" * 43),
        ("--url", "ftp://x", "--kid", "x" * 43),
    ],
)
def test_a_wrong_command_line(machine: Machine, options: tuple[str, ...]) -> None:
    """Exit code 2, and nothing was looked at."""
    result = machine.run("clevis-attest-predict", *options)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr


def test_summary() -> None:
    """clevis lists it."""
    run = subprocess.run(
        [PIN / "clevis-attest-predict", "--summary"], capture_output=True, check=True, timeout=120
    )
    assert run.stdout.count(b"\n") == 1
