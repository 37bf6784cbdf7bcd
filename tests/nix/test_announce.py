"""`nixos-rebuild switch` announces the new generation, and never fails for it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nix.nix import Nix
from tests.nix.stage_1 import ATTEST, machine_with

HOST = f'networking.hostName = "pi-b"; {ATTEST}.network.enable = true;'
LABEL = "NixOS generation 42"


@dataclass
class Rebuilt:
    """A machine whose generation 42 has just been made, with a predictor that writes down what it is asked."""

    directory: Path
    script: str

    def __post_init__(self) -> None:
        self.system = self.directory / "store/nixos-system-42"
        profiles = self.directory / "profiles"
        for path in (self.system, profiles, self.directory / "bin", self.directory / "boot/loader/entries"):
            path.mkdir(parents=True)
        (self.system / "kernel-params").write_text("loglevel=4 root=fstab")
        for number, system in {"9": "nixos-system-9", "42": "nixos-system-42"}.items():
            (profiles / f"system-{number}-link").symlink_to(self.directory / "store" / system)
        (profiles / "system").symlink_to("system-42-link")
        self.predictor("exit 0")

    def predictor(self, text: str) -> None:
        """Further acts of clevis-attest-predict."""
        program = self.directory / "bin/clevis-attest-predict"
        program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >{self.directory}/asked\n{text}\n')
        program.chmod(0o755)

    def entry(self, number: int, *options: str, initrds: int = 1, linux: bool = True) -> None:
        """systemd-boot's file about a generation."""
        kernel = f"linux /EFI/nixos/k-{number}.efi\n" if linux else "efi /EFI/nixos/k.efi\n"
        (self.directory / f"boot/loader/entries/nixos-generation-{number}.conf").write_text(
            f"title NixOS\nsort-key nixos\nversion Generation {number}\n{kernel}"
            + "".join(
                f"initrd /EFI/nixos/i{'' if part == 0 else part}-{number}.efi\n" for part in range(initrds)
            )
            + "".join(f"options {line}\n" for line in options)
            + "machine-id x\n"
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The announcement."""
        text = self.script.replace("/nix/var/nix/profiles", str(self.directory / "profiles"))
        text = text.replace("'/boot /boot'", f"'{self.directory}/nowhere {self.directory}/boot'")
        text = text.replace("PATH=", f"PATH={self.directory}/bin:", 1)
        return subprocess.run(
            ["busybox", "sh", "-c", text, "tang-attest-announce", *arguments],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def words(self) -> list[str]:
        """Arguments of the predictor, of its last call."""
        return (self.directory / "asked").read_text().split("\0")[:-1]

    def asked(self) -> dict[str, str]:
        """Arguments of the predictor, by option."""
        words = self.words()
        return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture(scope="session")
def announce(nix: Nix) -> tuple[str, str]:
    """The command, and the activation script."""
    expression = (
        "[ (map toString r.config.environment.systemPackages) "
        "r.config.system.activationScripts.tang-attest-announce ]"
    )
    packages, activation = nix.realize(machine_with(HOST), expression)
    (command,) = [path for path in packages if path.endswith("-tang-attest-announce")]
    return (Path(command) / "bin/tang-attest-announce").read_text(), activation


@pytest.fixture
def rebuilt(announce: tuple[str, str], tmp_path: Path) -> Rebuilt:
    """A machine after nixos-rebuild."""
    return Rebuilt(tmp_path, announce[0])


def test_a_generation_is_announced(rebuilt: Rebuilt) -> None:
    """Kernel, initrd and command line are those that the boot loader will pass."""
    result = rebuilt.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert rebuilt.asked() == {
        "--kernel": f"{rebuilt.system}/kernel",
        "--initrd": f"{rebuilt.system}/initrd",
        "--cmdline": f"init={rebuilt.system}/init loglevel=4 root=fstab",
        "--label": LABEL,
    }


@pytest.mark.parametrize("more", [" quiet splash", ""])
def test_the_boot_loaders_entry_counts(rebuilt: Rebuilt, more: str) -> None:
    """systemd-boot has a copy of the initrd, with secrets appended: that one is measured."""
    rebuilt.entry(9, f"init={rebuilt.directory}/store/nixos-system-9/init")
    rebuilt.entry(42, f"init={rebuilt.system}/init{more}")
    assert rebuilt.run().returncode == 0
    boot = rebuilt.directory / "boot"
    assert rebuilt.asked() == {
        "--kernel": f"{boot}/EFI/nixos/k-42.efi",
        "--initrd": f"{boot}/EFI/nixos/i-42.efi",
        "--cmdline": f"init={rebuilt.system}/init{more}",
        "--label": LABEL,
    }


def test_every_initrd_and_every_line_of_options_counts(rebuilt: Rebuilt) -> None:
    """An entry may have several of each: microcode first, and parameters on lines of their own."""
    rebuilt.entry(42, "quiet", f"init={rebuilt.system}/init", "loglevel=4", initrds=3)
    assert rebuilt.run().returncode == 0
    boot = rebuilt.directory / "boot/EFI/nixos"
    words = rebuilt.words()
    assert [words[place + 1] for place, word in enumerate(words) if word == "--initrd"] == [
        f"{boot}/i-42.efi",
        f"{boot}/i1-42.efi",
        f"{boot}/i2-42.efi",
    ]
    assert words[words.index("--cmdline") + 1] == f"quiet init={rebuilt.system}/init loglevel=4"


@pytest.mark.parametrize("missing", ["linux", "initrd"])
def test_an_entry_that_names_no_kernel_is_not_guessed(rebuilt: Rebuilt, missing: str) -> None:
    """Values of anything else would be announced for a boot that never comes."""
    rebuilt.entry(
        42, f"init={rebuilt.system}/init", initrds=0 if missing == "initrd" else 1, linux=missing != "linux"
    )
    result = rebuilt.run()
    assert result.returncode == 1
    assert "names no kernel, no initrd or no command line\n" in result.stderr
    assert f"{LABEL} is not announced" in result.stderr
    assert not (rebuilt.directory / "asked").exists()


def test_an_entry_without_options_is_no_entry_of_a_generation(rebuilt: Rebuilt) -> None:
    """Its title may name the generation; nothing of it is taken."""
    rebuilt.entry(42)
    assert rebuilt.run().returncode == 0
    assert rebuilt.asked()["--cmdline"] == f"init={rebuilt.system}/init loglevel=4 root=fstab"


def test_all_generations_of_the_boot_loader(rebuilt: Rebuilt) -> None:
    """A renewed client certificate is appended to every generation's initrd, so each measures something new."""
    log = rebuilt.directory / "log"
    rebuilt.predictor(f'echo "$*" >>{log}; case "$*" in *system-9*) exit 1 ;; esac')
    nine = f"{rebuilt.directory}/store/nixos-system-9"
    rebuilt.entry(9, f"init={nine}/init quiet")
    rebuilt.entry(42, f"init={rebuilt.system}/init")
    (rebuilt.directory / "boot/loader/entries/other.conf").write_text("title other\noptions root=/dev/sda\n")
    Path(nine).mkdir()
    result = rebuilt.run("--all")
    assert result.returncode == 1
    assert "NixOS generation 9 is not announced" in result.stderr
    assert [line.rsplit(" ", 1)[-1] for line in log.read_text().splitlines()] == ["42", "9"]


def test_all_generations_without_entries(rebuilt: Rebuilt) -> None:
    """Without systemd-boot, those of the profile."""
    log = rebuilt.directory / "log"
    rebuilt.predictor(f'echo "$*" >>{log}')
    nine = rebuilt.directory / "store/nixos-system-9"
    nine.mkdir()
    (nine / "kernel-params").write_text("quiet")
    assert rebuilt.run("--all").returncode == 0
    assert [line.rsplit(" ", 1)[-1] for line in log.read_text().splitlines()] == ["42", "9"]


@pytest.mark.parametrize(
    ("server", "which"),
    [
        ("", '"$systemConfig"'),
        ('clientCertificate = "/etc/m.crt"; clientKey = "/etc/m.key";', "--all"),
        ("clientCertificate = ./m.crt; clientKey = ./m.key;", '"$systemConfig"'),
    ],
)
def test_a_certificate_outside_of_the_store_concerns_every_generation(
    nix: Nix, server: str, which: str
) -> None:
    """The switch then announces all of them."""
    module = machine_with(f"{HOST} {ATTEST}.server = {{ {server} }};")
    text = nix.evaluate(module, "r.config.system.activationScripts.tang-attest-announce")
    assert f"/bin/tang-attest-announce {which} <" in text


def test_a_generation_can_be_named(rebuilt: Rebuilt) -> None:
    """A system that is in no profile has no number."""
    other = rebuilt.directory / "store/other"
    other.mkdir()
    (other / "kernel-params").write_text("quiet")
    assert rebuilt.run(str(other)).returncode == 0
    assert rebuilt.asked()["--label"] == "NixOS"
    assert rebuilt.asked()["--cmdline"] == f"init={other}/init quiet"


@pytest.mark.parametrize("status", [1, 3, 4])
def test_where_it_cannot_it_says_what_remains(rebuilt: Rebuilt, status: int) -> None:
    """Refused, no server, not predictable: two commands, with the machine's and the generation's names."""
    rebuilt.predictor(f"echo 'tang-attest: PCR 9 cannot be predicted' >&2; exit {status}")
    result = rebuilt.run()
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "tang-attest: PCR 9 cannot be predicted",
        f"tang-attest: {LABEL} is not announced, so its first boot asks for the passphrase",
        "hint: after that boot, on the server:",
        "    tang-attest observation list --device pi-b",
        f'    tang-attest approve pi-b --observation ID --label "{LABEL}"',
    ]


def test_a_jwe_in_the_configuration_is_named(nix: Nix, tmp_path: Path) -> None:
    """A volume without a binding in its header has the server's address in its JWE only."""
    jwe = tmp_path / "root.jwe"
    jwe.write_text("a JWE")
    module = machine_with(f"{HOST} {ATTEST}.devices.root.secretFile = {jwe};")
    packages = nix.realize(module, "map toString r.config.environment.systemPackages")
    (command,) = [path for path in packages if path.endswith("-tang-attest-announce")]
    rebuilt = Rebuilt(tmp_path / "machine", (Path(command) / "bin/tang-attest-announce").read_text())
    assert rebuilt.run().returncode == 0
    assert Path(rebuilt.asked()["--jwe"]).read_text() == "a JWE"


@pytest.mark.parametrize(
    ("booted", "action", "announced"),
    [
        ("nixos-system-9", "switch", True),
        ("nixos-system-9", None, True),
        ("nixos-system-42", "switch", False),  # nothing is new
        ("nixos-system-9", "test", False),  # never booted
        (None, None, False),  # this is the boot itself
    ],
)
@pytest.mark.parametrize("status", [0, 1])
def test_the_switch_announces_and_goes_on(
    rebuilt: Rebuilt,
    announce: tuple[str, str],
    booted: str | None,
    action: str | None,
    announced: bool,
    status: int,
) -> None:
    """Activation calls the command when there is something to announce, and succeeds whatever comes of it."""
    if booted:
        (rebuilt.directory / "store" / booted).mkdir(exist_ok=True)
        (rebuilt.directory / "booted").symlink_to(rebuilt.directory / "store" / booted)
    called = rebuilt.directory / "called"
    command = rebuilt.directory / "bin/announce"
    command.write_text(f'#!/bin/sh\nprintf %s "$1" >{called}\nexit {status}\n')
    command.chmod(0o755)
    text = announce[1].replace("/run/booted-system", str(rebuilt.directory / "booted"))
    start = text.index("/", text.index("then"))
    end = text.index("/bin/tang-attest-announce") + len("/bin/tang-attest-announce")
    script = f"set -e\nsystemConfig={rebuilt.system}\n{text[:start]}{command}{text[end:]}\necho goes on\n"
    environment = os.environ | ({"NIXOS_ACTION": action} if action else {})
    result = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stdout) == (0, "goes on\n"), result.stderr
    assert called.exists() is announced
    assert not announced or called.read_text() == str(rebuilt.system)


def test_it_can_be_turned_off(nix: Nix) -> None:
    """Switched off, there is neither the command nor the activation."""
    module = machine_with(f"{HOST} {ATTEST}.announce.enable = false;")
    assert "tang-attest-announce" not in nix.evaluate(
        module, "builtins.attrNames r.config.system.activationScripts"
    )


def test_the_shell_is_clean(announce: tuple[str, str], tmp_path: Path) -> None:
    """shellcheck reads both."""
    for number, text in enumerate((announce[0], f"#!/bin/bash\nsystemConfig=/x\n{announce[1]}")):
        script = tmp_path / str(number)
        script.write_text(text)
        subprocess.run(["shellcheck", script], check=True, timeout=120)
