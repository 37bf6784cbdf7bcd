"""The shell of the scripted stage 1, and the agent of the one with systemd, run: real TPM, server, clevis and LUKS2.

Only programs that stage 1 has are on PATH, and busybox is the shell.  Absolute paths of stage 1 are moved below the
test's directory, and /dev/tpmrm0 is the software TPM.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.nix.nix import Nix
from tests.nix.stage_1 import ATTEST, DEVICE, machine_with
from tests.pin.conftest import Server
from tests.pin.machine import Disk, Machine
from tools.generate_nix import ROOT

pytestmark = pytest.mark.slow

BUSYBOX = shutil.which("busybox") or "busybox"
TYPED = b"typed by a person"
#: Programs that NixOS copies into the scripted stage 1: busybox, and this (boot.initrd.clevis, luksroot, stage-1).
PROGRAMS = ("bash", "cryptsetup", "curl", "jose", "tpm2")
#: Those that every stage 1 has, and a test has not.
FAKES = {"dmsetup": "exit 0", "modprobe": "exit 1", "umount": "exit 0"}


@dataclass
class Stage1:
    """Stage 1 of one machine, below a directory, with one volume."""

    directory: Path
    machine: Machine
    disk: Disk
    shell: dict[str, str]
    scripts: Path
    _: KW_ONLY
    pin: Path
    paths: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "ramfs", "etc", "lib", "ask", "run"):
            self.paths[name] = self.directory / name
            self.paths[name].mkdir(parents=True)
        self.console = self.directory / "console"
        self.console.touch()
        (self.directory / "tpmrm0").touch()
        # The volume is a file here, and a block device in stage 1.
        node = self.directory / "block" / self.disk.path.name
        node.mkdir(parents=True)
        (node / "dev").write_text("254:0\n")
        self._programs()
        for script in self.scripts.iterdir():
            if script.is_file():
                self.write(self.paths["lib"] / script.name, self.moved(script.read_text()).encode())
        for name, text in {"devices": f"root {self.disk.path}\n", "pause": "1\n", "cap-pcr": "15\n"}.items():
            (self.paths["etc"] / name).write_text(text)

    def _programs(self) -> None:
        subprocess.run([BUSYBOX, "--install", "-s", self.paths["bin"]], check=True)
        for program in PROGRAMS:
            found = shutil.which(program)
            assert found, program
            (self.paths["bin"] / program).unlink(missing_ok=True)
            (self.paths["bin"] / program).symlink_to(found)
        for name, line in FAKES.items():
            self.write(self.paths["bin"] / name, f"#!/bin/sh\n{line}\n".encode())
        # As boot.initrd.clevis copies them.
        self.write(self.paths["bin"] / "clevis", (self.pin / "bin/.clevis-wrapped").read_bytes())
        for script in (self.pin / "bin").glob("clevis-decrypt*"):
            text = script.read_bytes().replace(str(self.pin.parent).encode(), b"/nowhere")
            # Do as boot.initrd.clevis does to the shebangs of the pins that it knows.
            self.write(self.paths["bin"] / script.name, re.sub(rb"^#!/nowhere/[^/]*/bin/", b"#!/bin/", text))

    def write(self, path: Path, text: bytes) -> None:
        """A program."""
        path.unlink(missing_ok=True)
        path.write_bytes(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def moved(self, text: str) -> str:
        """The same shell, with its paths below the test's directory."""
        places = {
            "/crypt-ramfs": self.paths["ramfs"],
            "/usr/lib/clevis-attest": self.paths["lib"],
            "/etc/clevis-attest": self.paths["etc"],
            "/run/systemd/ask-password": self.paths["ask"],
            "/sys/class/block": self.directory / "block",
            "/run/clevis-attest": self.machine.directory / "run",
            ">/dev/console": f">>{self.console}",
            "device:/dev/tpmrm0": self.machine.environment["TPM2TOOLS_TCTI"],
            "/dev/tpmrm0": self.directory / "tpmrm0",
        }
        for place, moved in places.items():
            text = text.replace(place, str(moved))
        # Nobody waits for a disk that is not there.
        return text.replace("sleep 10\n", "sleep 1\n")

    @property
    def environment(self) -> dict[str, str]:
        """Stage 1 has nothing else on PATH."""
        return {
            **self.machine.environment,
            "PATH": str(self.paths["bin"]),
            "CLEVIS_ATTEST_CONSOLE": str(self.console),
        }

    def run(self, text: str, timeout: float = 240) -> subprocess.CompletedProcess[bytes]:
        """Shell of stage 1, to its end; TimeoutExpired after it was ended with all that it started."""
        command = [BUSYBOX, "sh", "-c", self.moved(text)]
        process = subprocess.Popen(
            command, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            raise subprocess.TimeoutExpired(command, timeout, output, errors) from None
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def go_on(self, place: str) -> subprocess.CompletedProcess[bytes]:
        """Run what the module puts at *place*, inside of stage 1's script; it prints whether stage 1 goes on."""
        text = self.shell[place].replace("/dev/mapper/root", str(self.disk.path))
        return self.run(f"fail() {{ echo stage 1 fails; exit 1; }}\n{text}\necho gone on\n")

    @contextmanager
    def booting(self) -> Iterator[Boot]:
        """The volume's prompt, with what the module puts before and after it."""
        prompt = (ROOT / "tests/nix/prompt.sh").read_text()
        prompt = prompt.replace("@ramfs@", str(self.paths["ramfs"])).replace("@device@", str(self.disk.path))
        text = (
            self.moved(self.shell["preOpenCommands"])
            + "\n"
            + prompt
            + self.moved(self.shell["postOpenCommands"])
        )
        text += "\necho stage 1 goes on\n"
        with (self.directory / "output").open("wb") as output:
            process = subprocess.Popen(
                [BUSYBOX, "sh", "-c", text], env=self.environment,
                stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        boot = Boot(self, process)
        try:
            yield boot
        finally:
            boot.end()

    def token(self, number: int) -> dict[str, Any]:
        """A token of the volume."""
        exported = self.machine.run(
            "cryptsetup", "token", "export", "--token-id", str(number), self.disk.path
        )
        token: dict[str, Any] = json.loads(exported.stdout)
        return token

    def agents(self) -> list[int]:
        """Processes of ours that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and str(self.paths["lib"]).encode() in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def until_no_agent(self) -> None:
        """Wait until none is left."""
        deadline = time.monotonic() + 120
        while self.agents():
            assert time.monotonic() < deadline, "the agent outlives the prompt"
            time.sleep(0.05)

    def left_in_ramfs(self) -> set[str]:
        """Places that could still hold a key."""
        return {path.name for path in self.paths["ramfs"].iterdir()} - {"device"}


@dataclass
class Boot:
    """A stage 1 that runs."""

    stage_1: Stage1
    process: subprocess.Popen[bytes]

    def output(self) -> str:
        """Its output so far."""
        return (self.stage_1.directory / "output").read_text()

    def type(self, passphrase: bytes) -> None:
        """A person answers the prompt."""
        assert self.process.stdin
        self.process.stdin.write(passphrase + b"\n")
        self.process.stdin.flush()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Until the console, or the prompt, shows a text."""
        deadline = time.monotonic() + seconds
        while text not in self.output() + self.stage_1.console.read_text():
            assert time.monotonic() < deadline, (
                f"no '{text}' in: {self.output()} {self.stage_1.console.read_text()}"
            )
            time.sleep(0.05)

    def goes_on(self) -> str:
        """Wait until the volume is open; what was printed."""
        self.wait_for("stage 1 goes on")
        self.process.wait(120)
        self.stage_1.until_no_agent()
        return self.output()

    def end(self) -> None:
        """End it and what it started."""
        assert self.process.stdin
        self.process.stdin.close()
        for pid in [*self.stage_1.agents(), self.process.pid]:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(120)


@pytest.fixture
def disk(machine: Machine) -> Disk:
    """A volume that a person's passphrase opens."""
    return Disk(machine, "luks2")


@pytest.fixture(scope="session")
def built(nix: Nix) -> tuple[dict[str, str], Path, Path]:
    """The module's shell for one volume, its scripts, and clevis with the pin."""
    shell = (
        f"{{ inherit (r.config.{DEVICE}) preOpenCommands postOpenCommands; "
        "inherit (r.config.boot.initrd) postDeviceCommands postMountCommands preFailCommands; }"
    )
    scripts = 'toString r.config.boot.initrd.extraFiles."/usr/lib/clevis-attest".source'
    pin = "toString r.config.boot.initrd.clevis.package"
    found = nix.realize(machine_with(f"{ATTEST}.timeouts.connect = 1;"), f"[ ({shell}) ({scripts}) ({pin}) ]")
    return found[0], Path(found[1]), Path(found[2])


@pytest.fixture
def stage_1(
    built: tuple[dict[str, str], Path, Path], machine: Machine, disk: Disk, tmp_path: Path
) -> Iterator[Stage1]:
    """Stage 1 of a machine whose volume is not bound yet."""
    shell, scripts, pin = built
    stage = Stage1(tmp_path / "stage-1", machine, disk, shell, scripts, pin=pin)
    yield stage
    for pid in stage.agents():
        os.kill(pid, signal.SIGKILL)


def bind(stage_1: Stage1, server: Server, name: str, kind: str = "token") -> None:
    """Bind the volume as the how-to says: by a LUKS2 token, or by a JWE of its passphrase in the configuration."""
    config = {"url": server.url, "name": name, "token": server.operator.token(name)}
    if kind == "token":
        stage_1.disk.bind("attest", config)
        return
    encrypted = stage_1.machine.run("clevis", "encrypt", "attest", json.dumps(config), "-y", stdin=TYPED)
    assert encrypted.returncode == 0, encrypted.stderr
    (stage_1.paths["etc"] / "root.jwe").write_bytes(encrypted.stdout)


@pytest.mark.parametrize("kind", ["token", "jwe"])
def test_it_opens_by_itself(stage_1: Stage1, server: Server, name: str, kind: str) -> None:
    """Nobody types; afterwards no process, no file and no environment holds the key."""
    bind(stage_1, server, name, kind)
    with stage_1.booting() as boot:
        shown = boot.goes_on()
    assert "opened with" in shown
    assert ("opened with typed by a person" in shown) is (kind == "jwe")
    assert "that does not open it" not in shown
    assert stage_1.left_in_ramfs() == set()


def test_then_it_is_capped(stage_1: Stage1, server: Server, name: str) -> None:
    """After the file systems are mounted no quote of this boot opens anything, and the console says how it went."""
    bind(stage_1, server, name, "jwe")
    with stage_1.booting() as boot:
        boot.goes_on()
    assert stage_1.go_on("postDeviceCommands").stdout == b"gone on\n"
    assert "unlocked by attestation" in stage_1.console.read_text()
    again = stage_1.run("clevis decrypt <@etc/root.jwe".replace("@etc", str(stage_1.paths["etc"])))
    assert again.returncode != 0
    assert "refused (capped)" in stage_1.console.read_text()


@pytest.mark.parametrize("place", ["postDeviceCommands", "postMountCommands"])
def test_a_root_that_is_not_what_was_opened_fails_the_boot(stage_1: Stage1, place: str) -> None:
    """Stage 1 stops where the check of the root fails, before anything is mounted and before stage 2."""
    stage_1.write(stage_1.paths["lib"] / "clevis-attest-root-check", b"#!/bin/sh\necho checked $1\nexit 1\n")
    looked_at = stage_1.disk.path if place == "postDeviceCommands" else Path("/mnt-root")
    assert stage_1.go_on(place).stdout.decode() == f"checked {looked_at}\nstage 1 fails\n"


def test_a_cap_that_fails_is_the_end_of_the_boot(stage_1: Stage1) -> None:
    """A TPM that does not take the cap: nothing is mounted, and the console says why."""
    stage_1.write(stage_1.paths["bin"] / "tpm2", b"#!/bin/sh\nexit 1\n")
    assert stage_1.go_on("postDeviceCommands").stdout == b"stage 1 fails\n"
    assert "no boot: the TPM did not take the cap" in stage_1.console.read_text()


def test_a_leftover_token_is_passed_over(stage_1: Stage1, server: Server, name: str) -> None:
    """A token without a key slot, and one whose slot another key fills, stand before the good one."""
    for _ in range(3):
        bind(stage_1, server, name)
    wrong = stage_1.directory / "wrong"
    wrong.write_bytes(b"of another volume")
    fast = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    path, key = stage_1.disk.path, stage_1.disk.key
    for command in (
        ("cryptsetup", "luksKillSlot", "-q", path, "1", "--key-file", key),
        ("cryptsetup", "luksKillSlot", "-q", path, "2", "--key-file", key),
        ("cryptsetup", "luksAddKey", "-q", "--key-slot", "2", *fast, "--key-file", key, path, wrong),
        ("cryptsetup", "token", "remove", "--token-id", "1", path),
    ):
        assert stage_1.machine.run(*command).returncode == 0, command
    token = json.dumps({"type": "clevis", "keyslots": ["2"], "jwe": stage_1.token(0)["jwe"]}).encode()
    added = stage_1.machine.run("cryptsetup", "token", "import", "--token-id", "1", path, stdin=token)
    assert added.returncode == 0, added.stderr
    with stage_1.booting() as boot:
        shown = boot.goes_on()
    assert "opened with" in shown
    assert "that does not open it" not in shown


def test_a_refused_boot_leaves_the_prompt(stage_1: Stage1, server: Server, name: str) -> None:
    """The console says which PCR, the passphrase opens, and nothing of ours lives on."""
    bind(stage_1, server, name)
    stage_1.machine.boot_with_another(9)
    with stage_1.booting() as boot:
        boot.wait_for("refused (pcr-mismatch)")
        assert "PCR 9" in stage_1.console.read_text()
        boot.type(TYPED)
        assert "opened with typed by a person" in boot.goes_on()
    assert stage_1.left_in_ramfs() == set()


def test_it_tries_again(stage_1: Stage1, server: Server, name: str) -> None:
    """An operator who approves while the prompt is there opens the machine without anybody at its keyboard."""
    bind(stage_1, server, name)
    stage_1.machine.boot_with_another(9)
    with stage_1.booting() as boot:
        boot.wait_for("refused (pcr-mismatch)")
        server.operator.run("approve", name)
        assert "opened with" in boot.goes_on()


def test_a_passphrase_typed_early_wins(stage_1: Stage1, server: Server, name: str) -> None:
    """With a server that is not there the prompt takes a passphrase at once."""
    bind(stage_1, server, name)
    stage_1.write(stage_1.paths["bin"] / "curl", b"#!/bin/sh\nexec sleep 300\n")
    begun = time.monotonic()
    with stage_1.booting() as boot:
        boot.type(TYPED)
        assert "opened with typed by a person" in boot.goes_on()
    assert time.monotonic() - begun < 50  # attestation has a minute
    assert stage_1.left_in_ramfs() == set()


def test_a_key_that_does_not_open_is_not_given(stage_1: Stage1, server: Server, name: str) -> None:
    """After somebody changed the passphrase that a JWE holds, the console says so and the prompt waits."""
    bind(stage_1, server, name, "jwe")
    changed = stage_1.machine.run(
        "cryptsetup", "luksChangeKey", "-q", "--key-file", stage_1.disk.key, "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", stage_1.disk.path, "-", stdin=b"another one",
    )  # fmt: skip
    assert changed.returncode == 0, changed.stderr
    with stage_1.booting() as boot:
        boot.wait_for("the key that attestation gave does not open root")
        boot.type(b"another one")
        shown = boot.goes_on()
    assert "that does not open it" not in shown
    assert stage_1.console.read_text().count("does not open root") == 1
    assert "opened with another one" in shown


def test_before_a_shell_it_is_capped(stage_1: Stage1, server: Server, name: str) -> None:
    """A failed approved boot gives a shell, but the agent is gone, and the pin run by hand is refused."""
    bind(stage_1, server, name, "jwe")
    before, after = stage_1.shell["preOpenCommands"], stage_1.shell["preFailCommands"]
    (stage_1.paths["ramfs"] / "passphrase").write_text("typed, and never read")
    failed = stage_1.run(f"{before}\n{after}\necho the menu")
    assert failed.stdout.endswith(b"the menu\n"), failed
    assert "this boot is capped" in stage_1.console.read_text()
    assert stage_1.left_in_ramfs() == set()
    stage_1.until_no_agent()
    assert stage_1.run(f"clevis decrypt <{stage_1.paths['etc']}/root.jwe").returncode != 0
    assert "refused (capped)" in stage_1.console.read_text()


def test_without_a_cap_there_is_no_shell(stage_1: Stage1) -> None:
    """A TPM that is not there may only come late: the menu does not appear, unless the configuration says so."""
    (stage_1.directory / "tpmrm0").unlink()
    menu = stage_1.shell["preFailCommands"] + "\necho the menu"
    with pytest.raises(subprocess.TimeoutExpired) as waited:
        stage_1.run(menu, timeout=15)
    assert b"the menu" not in (waited.value.stdout or b"")
    assert (
        "no shell: there is no TPM to cap (boot.initrd.tang-attest.shellWithoutTpm"
        in stage_1.console.read_text()
    )
    (stage_1.paths["etc"] / "shell-without-tpm").touch()
    assert stage_1.run(menu).stdout.endswith(b"the menu\n")


# --- with systemd ------------------------------------------------------------------------------------------------


@contextmanager
def agent(stage_1: Stage1) -> Iterator[None]:
    """The agent of a stage 1 with systemd; answers go to files beside the questions."""
    stage_1.write(
        stage_1.paths["bin"] / "systemd-reply-password",
        b'#!/bin/sh\n[ "$1" = 1 ] || exit 1\ncat >"$2.new" && mv "$2.new" "$2"\n',
    )
    process = subprocess.Popen(
        [stage_1.paths["lib"] / "clevis-attest-answer", "systemd"],
        env=stage_1.environment, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(120)


def ask(stage_1: Stage1, question: str, identity: str) -> Path:
    """A question as systemd-cryptsetup asks it; where the answer comes."""
    answer = stage_1.directory / f"answer-{question}"
    text = f"[Ask]\nPID=1\nSocket={answer}\nAcceptCached=1\nEcho=0\nId={identity}\nMessage=Please enter passphrase\n"
    hidden = stage_1.paths["ask"] / f"new.{question}"
    hidden.write_text(text)
    hidden.rename(stage_1.paths["ask"] / f"ask.{question}")
    return answer


def answered(answer: Path, seconds: float = 240) -> bytes:
    """Wait for an answer."""
    deadline = time.monotonic() + seconds
    while not answer.exists():
        assert time.monotonic() < deadline, f"no {answer.name}"
        time.sleep(0.05)
    return answer.read_bytes()


@pytest.mark.parametrize("kind", ["token", "jwe"])
def test_systemds_question_is_answered(stage_1: Stage1, server: Server, name: str, kind: str) -> None:
    """With the key, by whichever of its names the volume is asked for; what is not ours is left alone."""
    bind(stage_1, server, name, kind)
    other_name = stage_1.directory / "by-uuid"
    other_name.symlink_to(stage_1.disk.path)
    with agent(stage_1):
        foreign = ask(stage_1, "foreign", "cryptsetup:/dev/nowhere")
        login = ask(stage_1, "login", "plymouth:x")
        key = answered(ask(stage_1, "first", f"cryptsetup:{other_name}"))
        assert stage_1.disk.opens_with(key)
        # A key that did not open it is not given again: systemd gives up after three wrong answers.
        (stage_1.paths["ask"] / "ask.first").unlink()
        second = ask(stage_1, "second", f"cryptsetup:{other_name}")
        deadline = time.monotonic() + 120
        while "does not open root" not in stage_1.console.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [answer for answer in (foreign, login, second) if answer.exists()] == []


def test_systemds_question_waits_for_an_approval(stage_1: Stage1, server: Server, name: str) -> None:
    """A refused machine asks again while its prompt is there."""
    bind(stage_1, server, name)
    stage_1.machine.boot_with_another(4)
    with agent(stage_1):
        answer = ask(stage_1, "root", f"cryptsetup:{stage_1.disk.path}")
        deadline = time.monotonic() + 120
        while "refused (pcr-mismatch)" not in stage_1.console.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not answer.exists()
        server.operator.run("approve", name)
        assert stage_1.disk.opens_with(answered(answer))


def test_shell_of_stage_1_is_clean(built: tuple[dict[str, str], Path, Path], tmp_path: Path) -> None:
    """shellcheck and busybox read it, with what NixOS puts around it."""
    shell = built[0]
    script = tmp_path / "stage-1"
    script.write_text(
        "#!/bin/sh\n" + shell["preOpenCommands"] + shell["postOpenCommands"]
        + "fail() { exit 1; }\n" + shell["postDeviceCommands"] + shell["postMountCommands"] + shell["preFailCommands"]
    )  # fmt: skip
    subprocess.run(["shellcheck", script], check=True, timeout=120)
    subprocess.run([BUSYBOX, "ash", "-n", script], check=True, timeout=120)
    assert shlex.split(shell["preOpenCommands"])[-7:-5] == ["scripted", "root"]
