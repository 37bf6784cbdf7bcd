"""A key from attestation is tried on the volumes that have its token, before it is handed on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.images import disk
from tests.boot.images.cache import ROOT
from tests.initrd import header
from tests.initrd.scene import EVERY_SHELL, OTHER, UUID, Scene

#: The key of the slot that clevis made, without a newline at its end; and what the stub of the pin gives.
KEY = "Sy7dF3kq-0aA"

#: clevis' own dispatcher, down to what the pin prints.  These tests cover the wrapper around it.
_CLEVIS = """#!/bin/bash
jwe=$(cat)
[[ $jwe != *fails* ]] || exit 1
if [[ $jwe == *sss* ]]; then
    printf %s "$jwe" | sed 's/sss/part/' | "@bin@/initrd-decrypt" | sed 's/share/key/'
    exit "${PIPESTATUS[2]}"
fi
[[ $jwe == *other-pin* ]] || printf '%s\\n' "@run@/gave-key.7" >>"$CLEVIS_ATTEST_WITNESS"
cat "@run@/key"
"""


class Machine:
    """An initrd with LUKS2 volumes as image files."""

    def __init__(self, directory: Path) -> None:
        self.scene = Scene(directory)
        self.images: list[Path] = []
        run = self.scene.run_directory
        run.mkdir()
        (run / "key").write_text(KEY)
        (run / "gave-key.7").touch()
        places = {"@bin@": str(directory / "lib"), "@run@": str(run)}
        clevis = _CLEVIS
        for name, path in places.items():
            clevis = clevis.replace(name, path)
        self.scene.program("clevis-decrypt", clevis, "lib")
        wrapper = self.scene.moved((ROOT / "initrd/initrd-decrypt").read_text())
        self.scene.program("initrd-decrypt", wrapper, "lib")
        self.scene.program("blkid", f"#!/bin/sh\ncat {directory}/luks-devices\n")
        (directory / "luks-devices").touch()

    def volume(self, name: str, number: str, jwe: str, uuid: str = UUID, key: str = KEY) -> Path:
        """A LUKS2 volume with a passphrase, a key slot of clevis and its token."""
        image = self.scene.directory / "dev" / name
        payload = self.scene.directory / "payload"
        disk.filesystem(payload, 4096)
        disk.luks_image(image, payload, uuid)
        self.scene.disk(name, number)
        for secret, command in (
            (f"{disk.PASSPHRASE}\n{key}\n", ["luksAddKey", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]),
            (json.dumps(token(jwe)), ["token", "import", "--token-id=0"]),
        ):  # fmt: skip
            arguments = ["cryptsetup", *command, "--batch-mode", str(image)]
            subprocess.run(arguments, input=secret.encode(), check=True, capture_output=True)
        self.images.append(image)
        with (self.scene.directory / "luks-devices").open("a") as devices:
            devices.write(f"{image}\n")
        return image

    def decrypt(self, jwe: str) -> tuple[int, str]:
        """The status of ``clevis decrypt``, and what it printed."""
        environment = {**os.environ, "PATH": f"{self.scene.directory / 'bin'}:{os.environ['PATH']}"}
        result = subprocess.run(
            ["bash", str(self.scene.directory / "lib/initrd-decrypt")],
            input=jwe.encode(), capture_output=True, env=environment, timeout=120, check=False,
        )  # fmt: skip
        assert not list(self.scene.run_directory.glob("witness.*"))
        return result.returncode, result.stdout.decode()

    @property
    def marks(self) -> dict[str, str]:
        """The volumes that attestation opened, and on which devices."""
        directory = self.scene.run_directory / "attested"
        return {path.name: path.read_text() for path in directory.glob("*")} if directory.exists() else {}

    @property
    def last(self) -> str:
        """The code of what happened last."""
        return str(json.loads((self.scene.run_directory / "last.json").read_text())["code"])


def jwe_of(name: str) -> str:
    """A JWE whose parts are only compared here."""
    return f"{name}..iv-{name}.text-{name}.tag-{name}"


def token(jwe: str) -> dict[str, object]:
    """The token in which clevis keeps it."""
    protected, _, iv, ciphertext, tag = jwe.split(".")
    parts = {"protected": protected, "encrypted_key": "", "iv": iv, "ciphertext": ciphertext, "tag": tag}
    return {"type": "clevis", "keyslots": ["1"], "jwe": parts}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without volumes."""
    return Machine(tmp_path / "machine")


def test_a_key_that_opens_its_volume_is_handed_on_and_the_volume_is_marked(machine: Machine) -> None:
    """The mark names the device on which the key was tried."""
    machine.volume("vda", "254:16", jwe_of("root"))
    machine.volume("vdb", "254:32", jwe_of("second"), OTHER)
    assert machine.decrypt(jwe_of("root")) == (0, KEY)
    assert machine.marks == {UUID: "254:16\n"}
    assert (machine.scene.run_directory / "gave-key.7").exists()


def test_a_copied_token_gets_no_key(machine: Machine) -> None:
    """Somebody's own volume with the real token: the key opens nothing there, so it is not given to its prompt."""
    machine.volume("vda", "254:16", jwe_of("root"), key="their-own")
    assert machine.decrypt(jwe_of("root")) == (1, "")
    assert machine.marks == {}
    assert machine.last == "key-opens-nothing"
    assert not (machine.scene.run_directory / "gave-key.7").exists()
    line = "tang-attest: the key from attestation opens no volume that has its token"
    assert machine.scene.said.count(line) == 1
    assert machine.decrypt(jwe_of("root")) == (1, "")
    assert machine.scene.said.count(line) == 1


def test_a_copied_token_beside_the_real_volume_marks_only_that(machine: Machine) -> None:
    """Both have the root's UUID, too."""
    machine.volume("vda", "254:16", jwe_of("root"), key="their-own")
    machine.volume("vdb", "254:32", jwe_of("root"))
    assert machine.decrypt(jwe_of("root")) == (0, KEY)
    assert machine.marks == {UUID: "254:32\n"}


def test_a_null_cipher_gets_no_key(machine: Machine) -> None:
    """The real token and the real key slot, and a header that says that the data are not encrypted."""
    image = machine.volume("vda", "254:16", jwe_of("root"))
    header.change(image, header.null_segment)
    assert machine.decrypt(jwe_of("root")) == (1, "")
    assert machine.marks == {}
    assert machine.last == "null-cipher"
    assert "tang-attest: a volume has a null cipher" in machine.scene.said


def test_an_sss_policy_is_tried_as_a_whole(machine: Machine) -> None:
    """The part gives a share, which opens nothing; the policy's key does."""
    machine.volume("vda", "254:16", jwe_of("sss"))
    assert machine.decrypt(jwe_of("sss")) == (0, KEY)
    assert machine.marks == {UUID: "254:16\n"}


def test_a_key_of_another_pin_is_no_attestation(machine: Machine) -> None:
    """tang's, say: it is handed on as clevis does, and nothing is marked."""
    machine.volume("vda", "254:16", jwe_of("other-pin"))
    assert machine.decrypt(jwe_of("other-pin")) == (0, KEY)
    assert machine.marks == {}


def test_a_jwe_that_no_volume_has_is_handed_on_as_it_is(machine: Machine) -> None:
    """A file of NixOS', which is for what may hold any bytes."""
    machine.volume("vda", "254:16", jwe_of("root"))
    (machine.scene.run_directory / "key").write_bytes(b"a\nb\n\n")
    assert machine.decrypt(jwe_of("file")) == (0, "a\nb\n\n")
    assert machine.marks == {}


def test_a_failure_of_the_pin_stays_one(machine: Machine) -> None:
    """Nothing is tried, nothing is said but what the pin said."""
    machine.volume("vda", "254:16", jwe_of("fails"))
    assert machine.decrypt(jwe_of("fails")) == (1, "")
    assert machine.decrypt(jwe_of("fails-too")) == (1, "")
    assert machine.scene.said == ""


def test_what_cannot_be_marked_gets_no_key(machine: Machine) -> None:
    """The cap would call the volume opened by a passphrase."""
    machine.volume("vda", "254:16", jwe_of("root"))
    (machine.scene.run_directory / "attested").touch()
    assert machine.decrypt(jwe_of("root")) == (1, "")
    assert "cannot be written" in machine.scene.said


def test_the_key_is_on_no_command_line_and_in_no_file(machine: Machine) -> None:
    """Arguments of cryptsetup, and everything below the initrd's directories."""
    machine.volume("vda", "254:16", jwe_of("root"))
    real = (machine.scene.directory / "bin/cryptsetup").read_text()
    watch = f'printf "%s\\n" "$@" >>{machine.scene.directory}/seen\nenv >>{machine.scene.directory}/seen\n'
    machine.scene.program("cryptsetup", real.replace("#!/bin/sh\n", f"#!/bin/sh\n{watch}"))
    assert machine.decrypt(jwe_of("root")) == (0, KEY)
    (machine.scene.run_directory / "key").unlink()
    files = [path for path in machine.scene.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    assert machine.scene.directory / "seen" in files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_a_mark_wants_a_slot_that_opens(machine: Machine, shell: str) -> None:
    """In each shell; a passphrase's slot is another one."""
    image = machine.volume("vda", "254:16", jwe_of("root"))
    for slot, key, status in (("1", "wrong", 1), ("0", KEY, 1), ("7", KEY, 1), ("1", KEY, 0)):
        assert machine.scene.run(shell, "clevis-attest-mark", image, slot, stdin=key.encode()) == status
    assert machine.marks == {UUID: "254:16\n"}
    header.change(image, header.null_segment)
    assert machine.scene.run(shell, "clevis-attest-mark", image, "1", stdin=KEY.encode()) == 2
