"""tools/raspberry-pi-boot: the boot files of a Raspberry Pi, with a U-Boot that was built before."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "raspberry-pi-boot"
DOCUMENT = ROOT / "docs" / "how-to" / "boot" / "raspberry-pi.md"

#: A Pi's device tree, as far as the overlay needs it.
PI = """/dts-v1/;
/ {
	compatible = "raspberrypi,4-model-b", "brcm,bcm2711";
	soc {
		gpio: gpio@7e200000 {
			gpio-controller;
			#gpio-cells = <2>;
		};
	};
};
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the tool."""
    return subprocess.run(
        [str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )


@pytest.fixture
def u_boot(tmp_path: Path) -> Path:
    """A file in the place of U-Boot."""
    path = tmp_path / "u-boot.bin"
    path.write_bytes(b"U-Boot" * 100)
    return path


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    """A boot partition as Raspberry Pi OS has it, with files of other systems in it."""
    path = tmp_path / "firmware"
    (path / "overlays").mkdir(parents=True)
    for name in (
        "start4.elf",
        "fixup4.dat",
        "bcm2711-rpi-4-b.dtb",
        "kernel8.img",
        "cmdline.txt",
        "config.txt",
    ):
        (path / name).write_text(f"the Pi's {name}\n")
    (path / "overlays/vc4-kms-v3d.dtbo").write_text("an overlay\n")
    return path


def property_of(tree: Path, node: str, name: str) -> list[str]:
    """Return the words of a property in a compiled device tree; none if it is not there."""
    result = subprocess.run(
        ["fdtget", "-d", "absent", str(tree), node, name], capture_output=True, text=True, check=False
    )
    return [word for word in result.stdout.split() if word != "absent"]


def applied(tmp_path: Path, overlay: Path) -> Path:
    """Apply *overlay* to a Pi's device tree."""
    source, tree, combined = (tmp_path / name for name in ("pi.dts", "pi.dtb", "combined.dtb"))
    source.write_text(PI)
    subprocess.run(["dtc", "-q", "-@", "-O", "dtb", "-o", str(tree), str(source)], check=True)
    subprocess.run(["fdtoverlay", "-i", str(tree), "-o", str(combined), str(overlay)], check=True)
    return combined


def test_the_boot_files_start_u_boot_with_the_tpm(tmp_path: Path, u_boot: Path) -> None:
    """config.txt names the files that are there, and the firmware loads no initrd that nobody measures."""
    output = tmp_path / "pi"
    result = run("--u-boot", u_boot, output)
    assert result.returncode == 0, result.stderr
    config = (output / "config.txt").read_text()
    for name in re.findall(r"^kernel=(.*)$", config, re.MULTILINE):
        assert (output / name).read_bytes() == u_boot.read_bytes()
    for name in re.findall(r"^dtoverlay=(.*)$", config, re.MULTILINE):
        assert (output / "overlays" / f"{name}.dtbo").is_file()
    assert {"arm_64bit=1", "auto_initramfs=0", "dtparam=spi=off"} <= set(config.splitlines())


def test_the_sums_are_those_of_the_files(tmp_path: Path, u_boot: Path) -> None:
    """SHA256SUMS has every file, so that the card can be compared with it later."""
    output = tmp_path / "pi"
    assert run("--u-boot", u_boot, output).returncode == 0
    sums = {name: digest for digest, name in map(str.split, (output / "SHA256SUMS").read_text().splitlines())}
    files = {path for path in output.rglob("*") if path.is_file() and path.name != "SHA256SUMS"}
    assert sums == {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_the_overlay_has_the_tpm_on_the_pins_of_the_header(tmp_path: Path, u_boot: Path) -> None:
    """Clock 11, data 10 and 9, chip select 7, active low; no reset line unless it is given."""
    assert run("--u-boot", u_boot, tmp_path / "pi").returncode == 0
    tree = applied(tmp_path, tmp_path / "pi/overlays/tpm-soft-spi.dtbo")
    assert property_of(tree, "/spi-tpm", "compatible") == ["spi-gpio"]
    pins = {
        name: property_of(tree, "/spi-tpm", f"{name}-gpios")[1:] for name in ("sck", "mosi", "miso", "cs")
    }
    assert pins == {"sck": ["11", "0"], "mosi": ["10", "0"], "miso": ["9", "0"], "cs": ["7", "1"]}
    assert property_of(tree, "/spi-tpm/tpm@0", "compatible") == ["infineon,slb9670", "tcg,tpm_tis-spi"]
    assert property_of(tree, "/spi-tpm/tpm@0", "reset-gpios") == []


def test_reset_line_and_chip_select_can_be_chosen(tmp_path: Path, u_boot: Path) -> None:
    """A number with a leading zero is decimal."""
    result = run("--u-boot", u_boot, "--reset-gpio", "24", "--chip-select", "08", tmp_path / "pi")
    assert result.returncode == 0, result.stderr
    tree = applied(tmp_path, tmp_path / "pi/overlays/tpm-soft-spi.dtbo")
    assert property_of(tree, "/spi-tpm", "cs-gpios")[1:] == ["8", "1"]
    assert property_of(tree, "/spi-tpm/tpm@0", "reset-gpios")[1:] == ["24", "1"]


def test_the_image_has_the_firmware_and_all_that_it_starts(
    tmp_path: Path, u_boot: Path, firmware: Path
) -> None:
    """Only the firmware's own files of the old partition go in: no kernel and no settings of another boot."""
    image = tmp_path / "boot.img"
    result = run("--u-boot", u_boot, "--firmware", firmware, "--image", image, tmp_path / "pi")
    assert result.returncode == 0, result.stderr
    listing = subprocess.run(
        ["mdir", "-/", "-b", "-i", str(image), "::"], capture_output=True, text=True, check=True
    )
    names = {line.removeprefix("::/") for line in listing.stdout.split() if not line.endswith("/")}
    assert names == {
        *("start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb", "overlays/vc4-kms-v3d.dtbo"),
        *("u-boot.bin", "config.txt", "overlays/tpm-soft-spi.dtbo"),
    }
    config = subprocess.run(
        ["mtype", "-i", str(image), "::config.txt"], capture_output=True, text=True, check=True
    )
    assert "kernel=u-boot.bin" in config.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no directory is given"),
        (["one", "two"], "two directories are given"),
        (["--frobnicate", "out"], "there is no option --frobnicate"),
        (["out", "--suite"], "--suite needs a value"),
        (["--board", "rpi_5", "out"], "there is no board 'rpi_5'"),
        (["--suite", "../etc", "out"], "'../etc' is no suite of Debian"),
        (["--reset-gpio", "28", "out"], "'28' is no GPIO of the header"),
        (["--reset-gpio", "-1", "out"], "'-1' is no GPIO of the header"),
        (["--reset-gpio", "10", "out"], "GPIO 10 is a pin of the TPM's bus"),
        (["--reset-gpio", "7", "out"], "GPIO 7 is a pin of the TPM's bus"),
        (["--reset-gpio", "011", "out"], "is no GPIO of the header"),
        (["--reset-gpio", "09", "out"], "is a pin of the TPM's bus"),
        (["--chip-select", "9", "out"], "GPIO 9 is a data pin"),
        (["--chip-select", "x", "out"], "'x' is no GPIO of the header"),
        (["--u-boot", "/nonexistent", "out"], "there is no U-Boot at '/nonexistent'"),
        (["--source", "/nonexistent", "out"], "there is no directory '/nonexistent'"),
        (["--image", "boot.img", "out"], "--image needs --firmware"),
        (["--firmware", "/usr", "out"], "'/usr' has no start*.elf"),
        ([str(ROOT)], "is not empty"),
    ],
)
def test_a_wrong_argument_is_named_in_one_sentence(
    tmp_path: Path, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 2, nothing is written, and the last line says where the options are."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.returncode == 2
    said = result.stderr.splitlines()
    assert len(said) == 2
    assert sentence in said[0]
    assert said[1].startswith("The comment at the top of")
    assert list(tmp_path.iterdir()) == []


def test_the_document_gives_options_that_the_tool_knows(tmp_path: Path, u_boot: Path, firmware: Path) -> None:
    """Each command of the how-to runs as it is printed, with a U-Boot that was built before."""
    commands = re.findall(r"^    tools/raspberry-pi-boot (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(commands) >= 2
    for number, command in enumerate(commands):
        words = command.split("#")[0].split()
        words[-1] = str(tmp_path / f"out-{number}")
        words = [
            {"/mnt": str(firmware), "boot.img": str(tmp_path / "boot.img")}.get(word, word) for word in words
        ]
        result = run("--u-boot", u_boot, *words)
        assert result.returncode == 0, result.stderr
