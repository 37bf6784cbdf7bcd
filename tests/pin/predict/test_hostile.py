"""Files and logs that nobody made in good faith: the program ends soon, with one sentence for each PCR, never
with a traceback.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pin.predict.boots import MACHINE, Grub, Installed, SystemdBoot, Unified, pe
from tests.pin.predict.program import Program
from tests.protocol.eventlog import writer as w

pytestmark = pytest.mark.slow


def outcomes(program: Program, *options: str | Path) -> dict[int, str]:
    """Sentences about PCRs that cannot be predicted: each one printable line."""
    result = program.predict(*options)
    if result.returncode == 1:
        assert result.stderr.count("\n") == 1
        return {}
    assert result.stderr == ""
    said = {
        p["pcr"]: p["because"] for p in json.loads(result.stdout)["pcrs"] if p["state"] == "unpredictable"
    }
    assert all(sentence.isprintable() and len(sentence) <= 300 for sentence in said.values())
    return said


def booted(installed: Installed, directory: Path) -> Program:
    """A machine that booted what is installed."""
    program = Program(installed, directory)
    program.boot()
    return program


@pytest.mark.parametrize(
    "appended",
    [
        "if true; then\n" * 50_000,
        "for x in 1; do\n" * 50_000,
        "menuentry 'x' {\n" * 50_000,
        "function f {\n" * 10,
        "echo " + "${a}" * 200_000 + "\n",
        "set a=$a$a; " * 4000,
        "'" * 900_001,
        "\0" * 100,
        "\xff\xfe" * 1000,
        "#" * (1 << 20),
    ],
    ids=[
        "ifs",
        "loops",
        "entries",
        "function",
        "expansions",
        "doubling",
        "quotes",
        "zeros",
        "bytes",
        "large",
    ],
)
def test_a_hostile_grub_cfg(tmp_path: Path, appended: str) -> None:
    """PCR 8 and 9 are not known, and a sentence says why."""
    grub = Grub(tmp_path / "root")
    program = booted(grub, tmp_path)
    grub.write("boot/grub/grub.cfg", (grub.config() + appended).encode("latin-1"))
    said = outcomes(program)
    assert set(said) == {8, 9}
    assert "grub.cfg" in said[8]


def test_a_grub_cfg_that_is_no_file(tmp_path: Path) -> None:
    """A directory, a pipe that nobody writes to, a link to itself."""
    grub = Grub(tmp_path / "root")
    program = booted(grub, tmp_path)
    config = grub.root / "boot/grub/grub.cfg"
    for make in (config.mkdir, lambda: config.symlink_to(config), lambda: os.mkfifo(config)):
        config.unlink()
        make()
        assert "is not there" in outcomes(program)[8]
        if config.is_dir():
            config.rmdir()
            config.touch()


def truncated(image: bytes) -> bytes:
    return image[: len(image) // 3]


def huge_in_memory(image: bytes) -> bytes:
    """The second section has four GiB in memory."""
    changed = bytearray(image)
    struct.pack_into("<I", changed, 0x40 + 24 + 240 + 40 + 8, 0xFFFFFFFF)
    return bytes(changed)


def nested(image: bytes) -> bytes:
    """The kernel inside is none."""
    kernel = pe({".text": b"the kernel inside"})
    return image.replace(kernel, kernel.replace(b"PE\0\0", b"NE\0\0"))


@pytest.mark.parametrize("damage", [truncated, huge_in_memory, nested, lambda _: b"", lambda _: b"MZ" * 4096])
def test_a_hostile_unified_kernel_image(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """In the place of the running one, and given by the caller."""
    image = Unified(tmp_path / "root")
    program = booted(image, tmp_path)
    other = image.write("other.efi", damage(image.image()))
    assert 4 in outcomes(program, "--uki", other)
    image.write("boot/efi/EFI/BOOT/bootx64.efi", damage(image.image()))
    assert 4 in outcomes(program)


@pytest.mark.parametrize(
    "entry",
    [
        "linux " + "../" * 2000 + "etc/passwd\n",
        "linux /x\0y\ninitrd /\0\n",
        "linux\ninitrd\noptions\n",
        "options " + "x" * 70_000 + "\n",
        "linux /" + "y" * 5000 + "\n",
    ],
    ids=["dots", "zeros", "empty", "large", "name"],
)
def test_a_hostile_boot_loader_entry(tmp_path: Path, entry: str) -> None:
    """The PCRs that it decides are not known."""
    boot = SystemdBoot(tmp_path / "root")
    program = booted(boot, tmp_path)
    boot.write(f"boot/efi/loader/entries/{MACHINE}-9.conf", entry)
    assert set(outcomes(program)) & {4, 9, 12}


@pytest.mark.parametrize("seed", range(12))
def test_a_hostile_log(tmp_path: Path, seed: int) -> None:
    """Bits that are other ones, and events in a wrong order, in logs of each kind: refused, or understood."""
    chance = random.Random(seed)
    kind = (Grub, SystemdBoot, Unified)[seed % 3]
    installed = kind(tmp_path / "root")
    program = booted(installed, tmp_path)
    if chance.random() < 0.5:
        log = bytearray(program.log)
        for _ in range(3):
            log[chance.randrange(len(log))] ^= 1 << chance.randrange(8)
        program.log = bytes(log)
    else:
        events = installed.measured()
        chance.shuffle(events)
        program.log = w.agile((w.SHA256,), events)
    outcomes(program)


def test_a_log_with_the_most_of_everything(tmp_path: Path) -> None:
    """Thousands of commands that name each other's variables, at the limit of the log's size."""
    grub = Grub(tmp_path / "root")
    grub.install()
    honest = grub.measured()
    at = next(i for i, e in enumerate(honest) if e.data.startswith(b"grub_cmd: menuentry"))
    many = [
        w.Measurement(8, w.EV_IPL, f"grub_cmd: set v{n}=$v{n}\0".encode(), f"set v{n}=$v{n}".encode())
        for n in range(1200)
    ]
    program = Program(grub, tmp_path, w.agile((w.SHA256,), [*honest[:at], *many, *honest[at:]]))
    assert len(program.log) < 131072
    grub.write("boot/grub/grub.cfg", "".join(f"set v{n}=$v{n}$w\n" for n in range(3000)) + grub.config())
    assert 8 in outcomes(program)
