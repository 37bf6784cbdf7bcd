"""Trouble on the machine itself, when a disk is to be opened: each kind has its own sentence, and what can work works."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import PIN, SECRET, Completed, Machine, ended, until_gone
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs"


@pytest.fixture(scope="module")
def bound(server: Server) -> Iterator[tuple[Machine, bytes]]:
    """A machine that is never changed, and its JWE; in a directory that other users may enter."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        machine = Machine(
            directory / "machine", stack.enter_context(Swtpm(directory / "tpm", banks=("sha256",)))
        )
        token = server.operator.token("trouble")
        yield machine, machine.encrypt(url=server.url, name="trouble", token=token)


# --- the JWE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" ", b"\t", b"\n\n\n", b" \t\r\n \n", b"\v\f\n"])
def test_white_space_behind_the_jwe_is_passed_over(bound: tuple[Machine, bytes], end: bytes) -> None:
    """An editor or a secrets manager puts an end of line there."""
    machine, jwe = bound
    opened = machine.decrypt(jwe + end)
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, SECRET, b"")


GARBAGE: dict[str, bytes] = {
    "nul": b"\0", "nul and newline": b"\0\n", "newline and nul": b"\n\0", "letter": b"\nx", "dot": b".", "part": b".AAAA",
    "quote": b'"', "high": b"\xff", "no-break space": b"\xc2\xa0", "second": b"\n@", "padding": b"=", "bom": b"\xef\xbb\xbf",
    "escape": b"\x1b[2J", "delete": b"\x7f",
}  # fmt: skip


@pytest.mark.parametrize("kind", GARBAGE)
def test_anything_else_behind_the_jwe_is_refused_before_anybody_is_asked(
    bound: tuple[Machine, bytes], server: Server, kind: str
) -> None:
    """One sentence, no secret, and no request at the server."""
    machine, jwe = bound
    before = server.operator.run("audit", "--json")
    refused = machine.decrypt(jwe + (jwe if kind == "second" else b"") + GARBAGE[kind])
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.startswith(b"tang-attest: this is not a ")
    assert refused.stderr.count(b"\n") == 1
    assert server.operator.run("audit", "--json") == before
    assert machine.leftovers() == []


@pytest.mark.parametrize("at", [5, 200, -30, -5])
@pytest.mark.parametrize("what", [b"\0", b"\n", b" ", b"\r\n"])
def test_nothing_may_be_inside_the_jwe(bound: tuple[Machine, bytes], what: bytes, at: int) -> None:
    """Wrapped lines and lost bytes are no JWE."""
    machine, jwe = bound
    refused = machine.run("clevis-decrypt-attest", stdin=jwe[:at] + what + jwe[at:])
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.startswith(b"tang-attest: this is not a ")


@pytest.mark.parametrize("part", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("how", ["cut", "changed", "emptied", "longer"])
def test_no_plaintext_leaves_unless_it_is_authentic(
    bound: tuple[Machine, bytes], part: int, how: str
) -> None:
    """jose prints what it decrypts before it has checked the tag."""
    machine, jwe = bound
    parts = jwe.split(b".")
    swapped = b"B" if parts[part][-2:-1] == b"A" else b"A"
    parts[part] = {
        "cut": parts[part][:-1],
        "changed": parts[part][:-2] + swapped + parts[part][-1:],
        "emptied": b"",
        "longer": parts[part] + b"AAAA",
    }[how]
    if b".".join(parts) == jwe or (part == 1 and how == "changed"):
        return
    refused = machine.run("clevis-decrypt-attest", stdin=b".".join(parts))
    assert (refused.returncode, refused.stdout) == (1, b""), refused.stderr
    assert refused.stderr.startswith(b"tang-attest: ")
    assert refused.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "secret",
    [b"", b"\0", b"a", b"\0\0a", b"a\0\0", b"\n", b"a\n\n", bytes(range(256)), b"x" * 70000, b"-n", b"%s\\0"],
    ids=["empty", "nul", "letter", "nuls before", "nuls behind", "newline", "newlines", "every", "long", "option", "format"],
)  # fmt: skip
def test_every_byte_of_a_secret_comes_back(
    bound: tuple[Machine, bytes], server: Server, secret: bytes
) -> None:
    """Although it is held back in a shell until it is authentic."""
    machine, _ = bound
    config = f'{{"url":"{server.url}","name":"trouble"}}'
    jwe = machine.run("clevis", "encrypt", "attest", config, "-y", stdin=secret)
    assert jwe.returncode == 0, jwe.stderr
    opened = machine.decrypt(jwe.stdout)
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, secret, b"")


# --- places to write to --------------------------------------------------------------------------------------------


def in_namespace(machine: Machine, mounts: str, command: str = "clevis decrypt") -> Completed:
    """*command* after *mounts* in a mount namespace of its own; ``$run`` is the run directory, ``$tmp`` TMPDIR."""
    run, tmp = machine.directory / "run", machine.directory / "tmp"
    script = f"run={run}; tmp={tmp}; jwe={machine.directory}/jwe; {mounts}; {command} <$jwe"
    return machine.run("unshare", "-m", "bash", "-c", script)


#: Ways in which a directory $d cannot be written to.
UNUSABLE = {
    "read-only": "mount -t tmpfs none $d && mount -o remount,ro $d",
    "no inodes": "mount -t tmpfs -o nr_inodes=1 none $d",
    "few inodes": "mount -t tmpfs -o nr_inodes=3 none $d",
    "full": "mount -t tmpfs -o size=4k none $d && head -c 4096 /dev/zero >$d/x",
    "nearly full": "mount -t tmpfs -o size=12k none $d && head -c 4096 /dev/zero >$d/x",
    "a file": "mkdir -p $d && mount -t tmpfs none $d && d=$d/file && : >$d && export CLEVIS_ATTEST_RUN_DIR=$d",
    "below a file": "mkdir -p $d && mount -t tmpfs none $d && : >$d/file && export CLEVIS_ATTEST_RUN_DIR=$d/file/run",
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_run_directory_that_cannot_be_written_is_no_obstacle(
    bound: tuple[Machine, bytes], how: str
) -> None:
    """TMPDIR takes its place; the TPM is not blamed."""
    machine, jwe = bound
    (machine.directory / "jwe").write_bytes(jwe)
    opened = in_namespace(machine, f"d=$run; {UNUSABLE[how]}")
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, SECRET, b"")
    assert machine.leftovers() == []


def test_a_run_directory_of_another_user_is_no_obstacle(bound: tuple[Machine, bytes]) -> None:
    """udisks2 opens disks as user clevis, after root's initrd made the directory."""
    machine, jwe = bound
    (machine.directory / "tmp").chmod(0o1777)
    (machine.directory / "jwe").write_bytes(jwe)
    # A clone may be in a home directory that others cannot enter.
    installed = shutil.copytree(PIN, machine.directory / "pin")
    drop = f"env PATH={installed}:$PATH setpriv --reuid=65534 --regid=65534 --clear-groups"
    opened = machine.run("bash", "-c", f"{drop} clevis decrypt <{machine.directory}/jwe")
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, SECRET, b"")
    assert machine.leftovers() == []


@pytest.mark.parametrize("how", ["full", "no inodes", "read-only"])
def test_no_place_at_all_is_said(bound: tuple[Machine, bytes], how: str) -> None:
    """If nothing can be written, the line names the places and the reason, and not the TPM."""
    machine, jwe = bound
    (machine.directory / "jwe").write_bytes(jwe)
    mounts = "; ".join(f"d={d}; {UNUSABLE[how]}" for d in ("$run", "$tmp", "/tmp", "/dev/shm", "/run"))
    script = f"run={machine.directory}/run; tmp={machine.directory}/tmp; exec 3<{machine.directory}/jwe; {mounts}; clevis decrypt <&3"
    refused = machine.run("unshare", "-m", "bash", "-c", script)
    assert (refused.returncode, refused.stdout) == (1, b"")
    reason = "Read-only file system" if how == "read-only" else "No space left on device"
    said = refused.stderr.decode()
    assert said.startswith("tang-attest: there is no place to write to: ")
    assert reason in said
    assert "TPM" not in said


# --- the TPM -------------------------------------------------------------------------------------------------------


@contextmanager
def stopped(tpm: Swtpm) -> Iterator[None]:
    """A TPM that takes commands and answers none."""
    os.kill(tpm.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(tpm.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("limit", "seconds"), [("CLEVIS_ATTEST_TOTAL_TIMEOUT", 3), ("CLEVIS_ATTEST_TPM_TIMEOUT", 2)]
)
def test_a_tpm_that_hangs_is_named_in_time(bound: tuple[Machine, bytes], limit: str, seconds: int) -> None:
    """On the console too; nothing of ours goes on waiting, and the disk opens when the TPM is back."""
    machine, jwe = bound
    # The other limits are far away, so that a busy machine is told from a limit that does not count.
    limits = dict.fromkeys(("CLEVIS_ATTEST_TOTAL_TIMEOUT", "CLEVIS_ATTEST_TPM_TIMEOUT"), "900")
    with stopped(machine.tpm):
        begun = time.monotonic()
        refused = machine.decrypt(jwe, **(limits | {limit: str(seconds)}))
        took = time.monotonic() - begun
    assert (refused.returncode, refused.stdout) == (1, b"")
    line = f"tang-attest: the TPM does not answer ({machine.tpm.tcti}): switch the machine off and on"
    assert refused.stderr.decode() == line + "\n"
    assert line in machine.console
    assert took < 200
    assert machine.last["code"] == "tpm"
    assert machine.decrypt(jwe).stdout == SECRET
    assert machine.leftovers() == []


def test_the_limit_for_the_tpm_is_under_a_minute_by_itself(bound: tuple[Machine, bytes]) -> None:
    """Nobody waits for the limit of all servers together."""
    machine, jwe = bound
    with stopped(machine.tpm):
        begun = time.monotonic()
        assert b"the TPM does not answer" in machine.decrypt(jwe).stderr
        assert time.monotonic() - begun < 40


def test_a_tpm_that_hangs_does_not_hold_up_the_end(bound: tuple[Machine, bytes]) -> None:
    """A signal ends the pin in three seconds, its tpm2 with it; a command that the TPM answers is let end."""
    machine, jwe = bound
    with stopped(machine.tpm):
        process = machine.start("clevis-decrypt-attest", stdin=jwe)
        time.sleep(1.5)
        assert process.poll() is None
        assert ended(process) < 15  # the limit for the TPM is twenty seconds
        out, _ = process.communicate()
        assert out == b""
        until_gone(process.pid)
    assert machine.leftovers() == []


def test_a_tcti_that_hangs_is_a_tpm_that_hangs(bound: tuple[Machine, bytes]) -> None:
    """Any program may be between the pin and the TPM."""
    machine, jwe = bound
    limits = {"CLEVIS_ATTEST_TPM_TIMEOUT": "1", "CLEVIS_ATTEST_TOTAL_TIMEOUT": "900"}
    silent = {"TPM2TOOLS_TCTI": "cmd:exec sleep 900", **limits}
    begun = time.monotonic()
    refused = machine.decrypt(jwe, **silent)
    assert time.monotonic() - begun < 200
    assert b"the TPM does not answer (cmd:exec sleep 900)" in refused.stderr


@pytest.mark.parametrize("command", ["enroll", "status", "agent"])
def test_every_command_is_done_with_a_tpm_that_hangs(
    bound: tuple[Machine, bytes], server: Server, command: str
) -> None:
    """Their clean-up, too: it would ask for each context."""
    machine, _ = bound
    words = {
        "enroll": ("clevis-attest-enroll", "-y", json.dumps({"url": server.url, "name": "trouble"})),
        "status": ("clevis-attest-status",),
        "agent": ("clevis-attest-agent", "--once"),
    }[command]
    limits = {"CLEVIS_ATTEST_TPM_TIMEOUT": "2", "CLEVIS_ATTEST_KEY_TIMEOUT": "3"}
    machine.extra |= limits
    try:
        with stopped(machine.tpm):
            begun = time.monotonic()
            ended_with = machine.run(*words)
            took = time.monotonic() - begun
    finally:
        for name in limits:
            machine.extra.pop(name)
    assert took < 15
    assert ended_with.returncode in {1, 3}
    assert b"the TPM does not answer" in ended_with.stderr + ended_with.stdout
    assert machine.leftovers() == []


@pytest.mark.parametrize("banks", [("sha1",), ("sha384",), ("sha1", "sha512")])
def test_a_bank_that_is_not_active_is_named(
    bound: tuple[Machine, bytes], tmp_path: Path, banks: tuple[str, ...]
) -> None:
    """The TPM quotes it all the same, without PCRs."""
    _, jwe = bound
    with Swtpm(tmp_path / "tpm", banks=banks) as tpm:
        machine = Machine(tmp_path / "machine", tpm)
        make_key(tpm)
        refused = machine.decrypt(jwe)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.startswith(
        b"tang-attest: the TPM's sha256 bank is not active, and the server asks for sha256:"
    )
    assert b"firmware" in refused.stderr
    assert machine.last["code"] == "tpm"


@pytest.mark.parametrize("attributes", ["", "|noda"])
def test_a_key_with_a_password_is_named(
    bound: tuple[Machine, bytes], tmp_path: Path, attributes: str
) -> None:
    """With and without protection against guessing, the TPM says it in different ways."""
    _, jwe = bound
    with Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        machine = Machine(tmp_path / "machine", tpm)
        make_key(tpm, "-p", "secret", attributes=attributes)
        refused = machine.decrypt(jwe)
    assert refused.stderr.decode() == (
        "tang-attest: the key at 0x81010002 has a password, which nobody can type at boot: "
        "enroll with a key that has none\n"
    )


def make_key(tpm: Swtpm, *options: str, attributes: str = "") -> None:
    """A key at the AK's handle."""
    fixed = f"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign{attributes}"
    tpm.run(
        "tpm2",
        "createprimary",
        "-C",
        "o",
        "-G",
        "ecc256:ecdsa-sha256:null",
        "-a",
        fixed,
        "-c",
        "ak",
        *options,
    )
    tpm.run("tpm2", "evictcontrol", "-C", "o", "-c", "ak", "0x81010002")
    tpm.run("tpm2", "flushcontext", "-t")


# --- the event log -------------------------------------------------------------------------------------------------


def padded(log: bytes, size: int) -> bytes:
    """*log* with events in PCR 8 until it has *size* bytes."""
    head = 4 + 4 + 4 + 2 + 32 + 4
    while (left := size - len(log)) > 0:
        data = b"x" * (left - head if left < 8000 else 4000)
        log += struct.pack("<III", 8, 13, 1) + struct.pack("<H", 11) + hashlib.sha256(data).digest()
        log += struct.pack("<I", len(data)) + data
    return log


@pytest.fixture
def judged(machine: Machine, server: Server, name: str, tmp_path: Path) -> bytes:
    """The JWE of a machine whose PCR 4 is judged by events."""
    jwe = machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    rules = tmp_path / "rules"
    allow = f'{{pcr: 4, allow: [{{digest: "sha256:{"0" * 64}"}}]}}'
    rules.write_text(f"rules:\n  judge-by-events: [4]\n  rules:\n    - events: {allow}\n")
    server.operator.run("policy", "apply", name, "--file", str(rules), "--force")
    return jwe


@pytest.mark.parametrize("size", [131073, 131074, 131075, 155144, 400000])
def test_a_log_over_the_limit_is_named(
    machine: Machine, judged: bytes, server: Server, name: str, tmp_path: Path, size: int
) -> None:
    """On the console and in the server's record: the size and the limit, not "none was sent"."""
    log = tmp_path / "log"
    log.write_bytes(padded((LOGS / "secure-boot.bin").read_bytes(), size))
    assert log.stat().st_size == size
    refused = machine.decrypt(judged, CLEVIS_ATTEST_EVENT_LOG=str(log))
    said = f"event log has {size} bytes, and 131072 is the limit"
    assert f"refused (log-missing): the {said}" in refused.stderr.decode()
    assert said in machine.console
    assert said in server.operator.run("audit", "--device", name, "--json")
    assert "none was sent" not in server.operator.run("audit", "--device", name, "--json")


def test_a_log_at_the_limit_is_sent(
    machine: Machine, judged: bytes, server: Server, name: str, tmp_path: Path
) -> None:
    """Then its events are judged."""
    log = tmp_path / "log"
    log.write_bytes(padded((LOGS / "secure-boot.bin").read_bytes(), 131072))
    refused = machine.decrypt(judged, CLEVIS_ATTEST_EVENT_LOG=str(log))
    assert b"refused (log-missing)" not in refused.stderr
    assert b"131072 is the limit" not in refused.stderr


def test_no_log_is_said_as_ever(machine: Machine, judged: bytes, tmp_path: Path) -> None:
    """A machine without one is not told about limits."""
    refused = machine.decrypt(judged, CLEVIS_ATTEST_EVENT_LOG=str(tmp_path / "none"))
    assert b"refused (log-missing): the policy judges the firmware's event log" in refused.stderr
    assert b"limit" not in refused.stderr


def test_a_log_over_the_limit_is_no_obstacle_where_nothing_judges_it(
    machine: Machine, jwe: bytes, tmp_path: Path
) -> None:
    """It would only have explained a refusal."""
    log = tmp_path / "log"
    log.write_bytes(padded((LOGS / "secure-boot.bin").read_bytes(), 200_000))
    assert machine.decrypt(jwe, CLEVIS_ATTEST_EVENT_LOG=str(log)).stdout == SECRET
