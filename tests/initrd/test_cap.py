"""The cap: its text, what it extends, and how long it takes at most."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.initrd.scene import EVERY_SHELL, OTHER, UUID, Scene
from tests.swtpm import Swtpm

PLAIN = "tang-attest/v1 cap\n"

pytestmark = pytest.mark.parametrize("shell", EVERY_SHELL)


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swtpm]:
    """A TPM for the tests of this file, which each look at a PCR of their own or reset it."""
    with Swtpm(tmp_path_factory.mktemp("cap") / "tpm", banks=("sha256", "sha384")) as tpm:
        yield tpm


@pytest.fixture
def scene(tmp_path: Path, tpm: Swtpm) -> Scene:
    """A machine with that TPM, newly powered on."""
    tpm.restart()
    scene = Scene(tmp_path / "scene", tpm.environment)
    (scene.directory / "dev/tpmrm0").touch()
    return scene


def pcr(tpm: Swtpm, number: int = 15, bank: str = "sha256") -> str:
    """The value of a PCR."""
    said = tpm.run("tpm2", "pcrread", f"{bank}:{number}").stdout.decode()
    return said.split("0x")[1].strip().lower()


def replayed(*texts: str, bank: str = "sha256") -> str:
    """Return the value of a PCR after these events."""
    value = bytes(hashlib.new(bank).digest_size)
    for text in texts:
        value = hashlib.new(bank, value + hashlib.new(bank, text.encode()).digest()).digest()
    return value.hex()


def events(scene: Scene) -> str:
    """Return the texts that the running system finds."""
    return (scene.run_directory / "cap-events").read_text()


def test_a_boot_that_opened_nothing_is_capped_with_the_plain_text(
    shell: str, scene: Scene, tpm: Swtpm
) -> None:
    """The 19 bytes of old images, in each bank by its own hash."""
    assert scene.run(shell, "clevis-attest-cap") == 0
    assert events(scene) == PLAIN
    assert pcr(tpm) == replayed(PLAIN)
    assert pcr(tpm, bank="sha384") == replayed(PLAIN, bank="sha384")
    assert (scene.run_directory / "capped").exists()


def test_the_text_names_each_open_volume_in_order(shell: str, scene: Scene, tpm: Swtpm) -> None:
    """Volumes opened by attestation or by a passphrase, by UUID; other devices are not named."""
    scene.volume("dm-0", "254:0", "second", uuid=OTHER, attested=False)
    scene.volume("dm-1", "254:1", "root")
    scene.mapper("dm-2", "254:2", "swap", "CRYPT-PLAIN-swap", "vda")
    scene.mapper("dm-3", "254:3", "vg-root", "LVM-abc", "dm-1")
    assert scene.run(shell, "clevis-attest-cap") == 0
    text = f"{PLAIN}attested {UUID}\npassphrase {OTHER}\n"
    assert events(scene) == text
    assert pcr(tpm) == replayed(text)


def test_each_cap_of_a_boot_is_noted_after_the_one_before(shell: str, scene: Scene, tpm: Swtpm) -> None:
    """An early cap, the regular one and that of a shell; in the order in which they were extended."""
    assert scene.run(shell, "clevis-attest-cap") == 0
    scene.volume(attested=False)
    assert scene.run(shell, "clevis-attest-cap") == 0
    texts = (PLAIN, f"{PLAIN}passphrase {UUID}\n")
    assert events(scene) == "".join(texts)
    assert pcr(tpm) == replayed(*texts)


def test_a_mark_for_another_device_with_the_uuid_does_not_count(shell: str, scene: Scene) -> None:
    """Somebody's own volume with the root's UUID, opened by their passphrase, while the real one is there too."""
    scene.disk("vdb", "254:32")
    scene.volume("dm-0", "254:0", "root", "vdb")
    assert scene.run(shell, "clevis-attest-cap") == 0
    assert events(scene) == f"{PLAIN}passphrase {UUID}\n"


def test_a_mark_counts_with_integrity_between(shell: str, scene: Scene) -> None:
    """dm-crypt lies on dm-integrity, and that on the disk of the mark."""
    scene.disk("vda", "254:16")
    scene.mapper("dm-0", "254:0", "root_dif", "CRYPT-SUBDEV-x-root_dif", "vda")
    scene.volume("dm-1", "254:1", "root", "dm-0")
    assert scene.run(shell, "clevis-attest-cap") == 0
    assert events(scene) == f"{PLAIN}attested {UUID}\n"


def test_an_empty_mark_counts_for_any_device(shell: str, scene: Scene) -> None:
    """A caller that does not know the device of a key marks the UUID."""
    scene.volume(attested=False)
    scene.mark(UUID)
    assert scene.run(shell, "clevis-attest-cap") == 0
    assert events(scene) == f"{PLAIN}attested {UUID}\n"


def test_many_volumes_take_several_texts(shell: str, scene: Scene, tpm: Swtpm) -> None:
    """An event has 1024 bytes at most."""
    uuids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(25)]
    for number, uuid in enumerate(uuids):
        scene.volume(f"dm-{number}", f"253:{number}", f"v{number}", uuid=uuid, attested=False)
    assert scene.run(shell, "clevis-attest-cap") == 0
    lines = [f"passphrase {uuid}\n" for uuid in uuids]
    texts = [PLAIN + "".join(lines[:20]), PLAIN + "".join(lines[20:])]
    assert max(map(len, texts)) <= 1024
    assert events(scene) == "".join(texts)
    assert pcr(tpm) == replayed(*texts)


def test_the_image_and_the_argument_choose_the_pcr(shell: str, scene: Scene, tpm: Swtpm) -> None:
    """The argument wins; what software can reset is refused."""
    (scene.directory / "etc/clevis-attest/cap-pcr").write_text("11\n")
    assert scene.run(shell, "clevis-attest-cap") == 0
    assert pcr(tpm, 11) == replayed(PLAIN)
    assert scene.run(shell, "clevis-attest-cap", "12") == 0
    assert pcr(tpm, 12) == replayed(PLAIN)
    for wrong in ("16", "23", "x", "-1"):
        assert scene.run(shell, "clevis-attest-cap", wrong) == 2


def test_every_tpm_is_capped(shell: str, scene: Scene) -> None:
    """The one with the machine's key may be another than the first; one that refuses is a failure."""
    (scene.directory / "dev/tpmrm1").touch()
    log = scene.directory / "extended"
    fake = f'#!/bin/sh\ncat >/dev/null\necho "$TPM2TOOLS_TCTI $3 $4" >>{log}\ncase $TPM2TOOLS_TCTI in *@) exit 1 ;; esac\n'
    scene.program("tpm2", fake)
    scene.program("sleep", "#!/bin/sh\n")
    assert scene.run(shell, "clevis-attest-cap") == 0
    first, second = log.read_text().splitlines()
    assert first.startswith("swtpm:")
    assert second == f"device:{scene.directory}/dev/tpmrm1 15 "
    assert events(scene) == PLAIN
    scene.program("tpm2", fake.replace("*@)", "device:*)"))
    assert scene.run(shell, "clevis-attest-cap") == 1
    assert events(scene) == PLAIN


def test_a_tpm_that_refuses_is_a_failure(shell: str, scene: Scene) -> None:
    """Nothing is noted, and nothing says that the boot is capped."""
    scene.program("tpm2", "#!/bin/sh\ncat >/dev/null\nexit 1\n")
    scene.program("sleep", "#!/bin/sh\n")
    assert scene.run(shell, "clevis-attest-cap") == 1
    assert not (scene.run_directory / "cap-events").exists()
    assert not (scene.run_directory / "capped").exists()


def test_a_tpm_that_hangs_is_a_failure_within_a_bounded_time(shell: str, scene: Scene) -> None:
    """Its driver may hold the process for minutes, so nobody waits for its end: this one only ends by SIGKILL."""
    scene.program(
        "tpm2", f'#!/bin/sh\ntrap "" TERM INT HUP\necho $$ >{scene.directory}/hung\nexec sleep 300\n'
    )
    text = scene.directory / "lib/clevis-attest-cap"
    text.write_text(text.read_text().replace("patience=150 ", "patience=20 "))
    started = time.monotonic()
    assert scene.run(shell, "clevis-attest-cap") == 1
    assert time.monotonic() - started < 120
    assert not (scene.run_directory / "capped").exists()
    process = Path(f"/proc/{(scene.directory / 'hung').read_text().strip()}")
    deadline = time.monotonic() + 120
    while process.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_directory_that_cannot_be_written_is_not_the_tpms_fault(
    shell: str, scene: Scene, tpm: Swtpm
) -> None:
    """The boot is capped all the same; the running system has no text to show."""
    scene.run_directory.parent.rmdir()
    scene.run_directory.parent.touch()
    assert scene.run(shell, "clevis-attest-cap") == 0
    assert "cannot write" in scene.output
    assert pcr(tpm) == replayed(PLAIN)


@pytest.mark.parametrize(("setting", "status"), [("", 1), ("shell-without-tpm", 3)])
def test_a_tpm_of_the_firmware_that_linux_does_not_see_is_a_failure(
    shell: str, scene: Scene, setting: str, status: int
) -> None:
    """A wire that was cut may be mended later; without such a TPM the boot goes on, as does an image that allows it."""
    (scene.directory / "dev/tpmrm0").unlink()
    scene.program("sleep", "#!/bin/sh\n")
    assert scene.run(shell, "clevis-attest-cap") == 3
    table = scene.directory / "sys/firmware/acpi/tables/TPM2"
    table.parent.mkdir(parents=True)
    table.touch()
    if setting:
        (scene.directory / "etc/clevis-attest" / setting).touch()
    assert scene.run(shell, "clevis-attest-cap") == status
