"""Verification of running machines by command and by menu, with real TPMs that this machine reaches."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest.keys import attestation
from tang_attest.ports.machines import Reach
from tang_attest.programs import tpm2
from tang_attest.protocol.values.pcr import Selection
from tests.cli import forked
from tests.cli.transcript import environment, run
from tests.swtpm import Swtpm

NAMES = ("vm1", "vm2")
ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"


def virtual_machine(directory: Path) -> None:
    """Make a TPM with an AK at the usual handle, and its public area in ``ak.pub`` beside it; it is off."""
    with Swtpm(directory, banks=("sha256",)) as tpm:
        tpm.run(
            *("tpm2", "createprimary", "-Q", "-C", "o", "-G", "ecc256:ecdsa-sha256:null"),
            *("-a", ATTRIBUTES, "-c", "ak.ctx"),
        )
        tpm.run("tpm2", "evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", "0x81010002")
        tpm.run("tpm2", "readpublic", "-Q", "-c", "0x81010002", "-o", "ak.pub")
        tpm.run("tpm2", "shutdown", "--clear")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of vm1 and vm2 before their first start, for each test to copy."""
    directory = tmp_path_factory.mktemp("made")
    for name in NAMES:
        virtual_machine(directory / name)
    return directory


@pytest.fixture
def vms(tmp_path: Path, made: Path) -> Iterator[tuple[Swtpm, Swtpm]]:
    """vm1 and vm2, and an initialized server state in the current directory."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(tmp_path))
        stack.enter_context(environment())
        assert run("init")[2] == 0
        machines = []
        for name in NAMES:
            shutil.copytree(made / name, tmp_path / name)
            machines.append(stack.enter_context(Swtpm(tmp_path / name, made=True)))
        yield machines[0], machines[1]


def register(name: str, tpm: Swtpm, *, record: bool = True) -> None:
    """Register, and take what it runs now as what it shall run."""
    done = run("device", "register", name, "--file", f"{name}/ak.pub", "--tcti", tpm.tcti)
    assert done[2] == 0, done
    if record:
        out, err, code = run("device", "verify", name, "--record")
        assert (out, code) == (f"instance {name} verified\n", 0), err


def change(tpm: Swtpm, pcr: int = 7) -> None:
    """Something else runs now."""
    tpm.run("tpm2", "pcrextend", f"{pcr}:sha256={'11' * 32}")


def test_verify(vms: tuple[Swtpm, Swtpm]) -> None:
    """Verified, refused with its reasons, not registered, unreachable: each its own words and exit code."""
    register("vm1", vms[0])
    assert run("device", "verify", "vm1") == ("instance vm1 verified\n", "", 0)
    assert run("device", "verify", "vm9") == ("FAILURE: instance vm9 not registered\n", "", 4)
    change(vms[0])
    out, err, code = run("device", "verify", "vm1")
    assert code == 1
    assert out.splitlines()[0] == "FAILURE: instance vm1 refused: PCR 7 is not as approved (pcr-mismatch)"
    assert out.splitlines()[1].startswith("  PCR 7 does not match (got ")
    assert err.startswith("hint: ")
    vms[0].stop()
    out, err, code = run("device", "verify", "vm1")
    assert code == 3
    assert out.startswith("FAILURE: instance vm1 unreachable: the TPM at swtpm:host=127.0.0.1,port=")
    assert "(tpm-unreachable)" in out
    history = run("device", "history", "vm1")[0]
    assert [line.split()[3] for line in history.splitlines()[1:]] == ["unreachable", "refused", "verified"]
    assert run("device", "verify")[2] == 2


def test_without_a_reference_nobody_is_verified(vms: tuple[Swtpm, Swtpm]) -> None:
    """A machine of which nothing is known runs nothing approved."""
    register("vm1", vms[0], record=False)
    out, _, code = run("device", "verify", "vm1")
    assert code == 1
    assert "(policy-empty)" in out


def test_another_tpm_is_refused(vms: tuple[Swtpm, Swtpm]) -> None:
    """An answer by a neighbor's TPM is not signed by the machine's key."""
    register("vm1", vms[0])
    out, _, code = run("device", "verify", "vm1", "--tcti", vms[1].tcti)
    assert code == 1
    assert "(signature-invalid)" in out or "(tpm-unreachable)" in out
    assert "signature-invalid" in run("device", "history", "vm1")[0]


def test_watch(vms: tuple[Swtpm, Swtpm]) -> None:
    """A line for each round, a last line, and the exit code of the worst."""
    register("vm1", vms[0])
    out, err, code = run("device", "watch", "vm1", "--rounds", "3", "--delay", "0.1")
    assert (err, code) == ("", 0)
    assert out == (
        "round: 1 succeeded\nround: 2 succeeded\nround: 3 succeeded\ninstance vm1 verified in 3 of 3 rounds\n"
    )
    change(vms[0])
    out, _, code = run("device", "watch", "vm1", "--rounds", "2", "--delay", "0")
    assert code == 1
    assert out.splitlines()[0] == "round: 1 failed: PCR 7 is not as approved (pcr-mismatch)"
    assert out.splitlines()[-1] == "instance vm1 verified in 0 of 2 rounds"
    vms[0].stop()
    assert run("device", "watch", "vm1", "--rounds", "1")[2] == 3
    assert run("device", "watch", "vm9", "--rounds", "1")[:1] == ("FAILURE: instance vm9 not registered\n",)


def test_other_pcrs_of_the_running_system(vms: tuple[Swtpm, Swtpm]) -> None:
    """The running policy need not be the policy of the boot."""
    register("vm1", vms[0], record=False)
    assert run("device", "verify", "vm1", "--record", "--selection", "sha256:0")[2] == 2
    chosen = ("--record", "--selection", "sha256:0,2,12", "--tcti", vms[0].tcti)
    assert run("device", "verify", "vm1", *chosen)[2] == 0
    change(vms[0], 7)
    assert run("device", "verify", "vm1")[2] == 0
    change(vms[0], 12)
    assert "PCR 12 is not as approved" in run("device", "verify", "vm1")[0]
    assert run("device", "running-policy", "vm1", "--own")[2] == 0
    assert "(policy-empty)" in run("device", "verify", "vm1")[0]
    assert run("device", "running-policy", "vm1", "vm1-running")[2] == 0


def test_recording_again_adds_a_state(vms: tuple[Swtpm, Swtpm]) -> None:
    """After an update of what runs both are good; over other PCRs it is refused."""
    register("vm1", vms[0])
    change(vms[0])
    assert run("device", "verify", "vm1")[2] == 1
    for _ in range(2):  # the second time there is nothing new
        assert run("device", "verify", "vm1", "--record")[2] == 0
    policy = json.loads(run("policy", "show", "vm1-running", "--json")[0])
    assert len(policy["states"]) == 2
    others = ("--record", "--selection", "sha256:0", "--tcti", vms[0].tcti)
    out, err, code = run("device", "verify", "vm1", *others)
    assert (out, code) == ("", 1)
    assert "(name-taken)" in err


def test_failure_suspends_also_when_the_operator_asked(vms: tuple[Swtpm, Swtpm]) -> None:
    """The observer does not matter, the observation does."""
    register("vm1", vms[0])
    assert run("policy", "require-rounds", "vm1", "on", "--on-failure", "suspend")[2] == 0
    change(vms[0])
    assert run("device", "verify", "vm1")[2] == 1
    assert "SUSPENDED" in run("device", "list")[0]
    assert "refused (pcr-mismatch)" in run("device", "show", "vm1")[0]
    assert run("device", "resume", "vm1")[2] == 0
    assert "operator:alice" in run("audit", "--device", "vm1")[0]
    code = run("device", "resume", "vm1")
    assert code[2] == 1
    assert "(not-suspended)" in code[1]


@pytest.mark.parametrize(
    "tcti", ["cmd:touch hacked", "swtpm:port=1;touch hacked", "/dev/tpm0", "swtpm:host=a\nb"]
)
def test_a_tcti_runs_no_commands(vms: tuple[Swtpm, Swtpm], tcti: str) -> None:
    """The cmd TCTI would run whatever it is told."""
    out, err, code = run("device", "register", "vm1", "--file", "vm1/ak.pub", "--tcti", tcti)
    assert (out, code) == ("", 1)
    assert "(setting-invalid)" in err
    assert not Path("hacked").exists()


def test_removal_forgets_the_running_policy(vms: tuple[Swtpm, Swtpm]) -> None:
    """The policy recorded for a machine goes with it; its history stays."""
    register("vm1", vms[0])
    assert "vm1-running" in run("policy", "list")[0]
    assert run("device", "remove", "vm1", "--yes")[2] == 0
    assert "vm1" not in run("policy", "list")[0]
    assert "verified" in run("device", "history", "vm1")[0]


def test_menu(vms: tuple[Swtpm, Swtpm]) -> None:
    """The session of the charter: register two, verify, watch, remove, verify the removed and the other, exit."""
    answers = [
        *("1", "vm1", "vm1/ak.pub", vms[0].tcti),
        *("1", "vm2", "vm2/ak.pub", vms[1].tcti),
        *("2", "vm1"),
        *("3", "vm1", "3", "0.1"),
        *("4", "vm1"),
        *("2", "vm1"),
        *("2", "vm2"),
        "5",
    ]
    out, err, code = run("menu", stdin="".join(f"{answer}\n" for answer in answers).encode())
    assert (err, code) == ("", 0)
    said = [
        line for line in out.splitlines() if line.startswith(("SUCCESS", "FAILURE", "instance ", "round"))
    ]
    assert [line for line in said if line not in ("instance: ", "rounds [3]: ")] == [
        "SUCCESS: instance vm1 registered",
        "SUCCESS: instance vm2 registered",
        "instance vm1 verified",
        "round: 1 succeeded",
        "round: 2 succeeded",
        "round: 3 succeeded",
        "SUCCESS: instance vm1 verified in 3 of 3 rounds",
        "SUCCESS: Instance vm1 removed",
        "FAILURE: instance vm1 not registered",
        "instance vm2 verified",
    ]


def menu(*answers: str, options: tuple[str, ...] = ()) -> tuple[list[str], str, int]:
    """The lines about successes and failures, stderr, and the exit code."""
    out, err, code = run("menu", *options, stdin="".join(f"{answer}\n" for answer in answers).encode())
    assert "Traceback" not in out + err
    said = [
        line for line in out.splitlines() if re.match("SUCCESS|FAILURE|round: |note|instance .* ver", line)
    ]
    return said, err, code


def test_menu_goes_on_after_a_mistake(vms: tuple[Swtpm, Swtpm]) -> None:
    """One line for each wrong answer, and the menu again; the end of the input ends it."""
    register("vm1", vms[0])
    Path("garbage").write_bytes(b"no key")
    Path("other").mkdir()
    for answers, failure in (
        (("7",), "a choice is 1 to 5"),
        (("x",), "a choice is 1 to 5"),
        (("",), "a choice is 1 to 5"),
        (("²",), "a choice is 1 to 5"),
        (
            ("1", "vm2", "nowhere"),
            "instance vm2 not registered: file nowhere cannot be read: .*file-unreadable",
        ),
        (("1", "vm2", "other"), r"instance vm2 not registered: file other cannot be read: .*file-unreadable"),
        (("1", "vm2", "no\0where"), "instance vm2 not registered: file .* cannot be read: .*file-unreadable"),
        (("1", "vm2", "-"), "instance vm2 not registered: file .*/- cannot be read: .*file-unreadable"),
        (("1", "vm2", "garbage"), "instance vm2 not registered: .*evidence-malformed"),
        (("1", "a b\033[1m", "vm1/ak.pub"), r"instance a b\\x1b\[1m not registered: .*request-malformed"),
        (("1", "vm1", "vm1/ak.pub", vms[0].tcti), "instance vm1 not registered: .*name-taken"),
        (("1", "vm2", "vm1/ak.pub", vms[0].tcti), "instance vm2 not registered: .*device-exists"),
        (("1", "vm2", "vm1/ak.pub", "cmd:true"), "instance vm2 not registered: .*setting-invalid"),
        (("1", "vm2", "vm1/ak.pub", vms[1].tcti), "instance vm2 not registered: .*tpm-unreachable"),
        (("2", "vm9"), "instance vm9 not registered"),
        (("2", ""), "instance  not registered"),
        (("3", "vm9", "1", "0"), "instance vm9 not registered"),
        (("3", "vm1", "many", "1"), "rounds is a number from 0 to 1000000"),
        (("3", "vm1", "2.5", "1"), "rounds is a whole number from 1 to 1000000"),
        (("3", "vm1", "0", "1"), "rounds is a whole number from 1 to 1000000"),
        (("3", "vm1", "1", "inf"), "seconds between rounds is a number from 0 to 1000000"),
        (("4", "vm9"), "instance vm9 not registered"),
    ):
        said, _, code = menu(*answers, "2", "vm1", "5")
        assert (len(said), said[-1], code) == (2, "instance vm1 verified", 0), said
        assert re.fullmatch(f"FAILURE: {failure}[)]?", said[0]), said
    assert not re.search("vm[29]", run("device", "list")[0])


def test_menu_ends_with_its_input(vms: tuple[Swtpm, Swtpm]) -> None:
    """At a choice that is an end; within a question it is a failure."""
    assert menu() == (["FAILURE: the input ended before Exit was chosen"], "", 0)
    for answers in (("2",), ("1", "vm1"), ("1", "vm1", "vm1/ak.pub"), ("3", "vm1", "3")):
        assert menu(*answers) == (["FAILURE: the input ended within a question"], "", 1)
    out, err, code = run("menu", stdin=b"2\n\xff\xfe\n5")
    assert ("not registered" in out, err, code) == (True, "", 0)


def test_menu_asks_before_the_keys_of_a_disk_are_destroyed(vms: tuple[Swtpm, Swtpm]) -> None:
    """A machine that unlocks disks is not lost by a slip; such a machine shares its key with none."""
    register("vm1", vms[0])
    out, err, code = run("menu", stdin=b"4\nvm1\nno\n5\n")
    assert ("nothing was removed" in out, err, code) == (True, "", 0)
    said, _, _ = menu("4", "vm1", "yes", "5")
    assert said == ["SUCCESS: Instance vm1 removed"]
    said, _, _ = menu("1", "vm1", "vm1/ak.pub", vms[0].tcti, "5")
    assert said == ["SUCCESS: instance vm1 registered"]
    again = ("device", "register", "vm2", "--file", "vm1/ak.pub", "--verify-only")
    assert run(*again)[2] == 2
    assert run(*again, "--tcti", vms[0].tcti) == ("", "tang-attest: SUCCESS: instance vm2 registered\n", 0)
    assert run("device", "remove", "vm2", "--yes")[2] == 0
    out, err, code = run("device", "register", "vm3", "--file", "vm1/ak.pub")
    assert (out, code) == ("", 1)
    assert "device 'vm1' has this TPM key already (device-exists)" in err


def test_an_instance_that_was_only_registered_has_no_exchange_key(vms: tuple[Swtpm, Swtpm]) -> None:
    """It is shown, verified and removed as any machine; nothing can be bound to it."""
    assert menu("1", "vm1", "vm1/ak.pub", "5", options=("--tcti", vms[0].tcti))[2] == 0
    shown = json.loads(run("device", "show", "vm1", "--json")[0])
    assert (shown["kids"], shown["key_lives_in"]) == ([], None)
    assert run("device", "show", "vm1")[2] == 0
    assert run("device", "verify", "vm1") == ("instance vm1 verified\n", "", 0)
    assert "(key-unknown)" in run("keys", "rotate", "--device", "vm1")[1]
    change(vms[0])
    assert "(pcr-mismatch)" in run("device", "verify", "vm1")[0]
    assert run("device", "remove", "vm1", "--yes")[2] == 0
    assert "vm1" not in run("device", "list")[0] + run("policy", "list")[0]


def test_menu_initializes_a_tpm_once(tmp_path: Path) -> None:
    """The same key again, beside what is at the usual handle; another key's file is kept."""
    with contextlib.chdir(tmp_path), environment(), Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        tpm.run("tpm2", "createprimary", "-Q", "-C", "o", "-c", "other.ctx")
        tpm.run("tpm2", "evictcontrol", "-Q", "-C", "o", "-c", "other.ctx", "0x81010002")
        tpm.run("tpm2", "flushcontext", "-t")
        initialize = ("menu", "--init", "--tcti", tpm.tcti)
        out, err, code = run(*initialize, stdin=b"1\nvm1\n\n2\nvm1\n5\n")
        assert (err, code) == ("", 0)
        assert "SUCCESS: the TPM is initialized, its public key is in id_tpm.pub\n" in out
        assert "instance vm1 verified\n" in out
        key = Path("id_tpm.pub").read_bytes()
        tpm.run("tpm2", "readpublic", "-Q", "-c", "0x81010003", "-o", tmp_path / "there.pub")
        assert Path("there.pub").read_bytes() == key
        assert run(*initialize, stdin=b"5\n")[2] == 0
        assert b"0x81010004" not in tpm.run("tpm2", "getcap", "handles-persistent").stdout
        Path("id_tpm.pub").write_bytes(b"another")
        out, err, code = run(*initialize, stdin=b"5\n")
        assert (out, code) == ("", 1)
        assert "file id_tpm.pub holds another key; move it away (file-exists)" in err
    with contextlib.chdir(tmp_path), environment():
        assert "(tpm-unreachable)" in run(*initialize)[1]
        assert "(setting-invalid)" in run("menu", "--tcti", "cmd:true")[1]


def test_menu_is_typed(tmp_path: Path) -> None:
    """At a terminal each question waits for its answer, which the terminal shows once."""
    with contextlib.chdir(tmp_path), environment(), Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        terminal, side = pty.openpty()
        command = forked.command("menu", "--init", "--tcti", tpm.tcti)
        with forked.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True) as process:
            os.close(side)
            said = b""
            for answer in (b"1", b"vm1", b"id_tpm.pub", b"2", b"vm1", b"5"):
                while not said.endswith(b": "):
                    said += os.read(terminal, 4096)
                os.write(terminal, answer + b"\n")
                said += b"."
            with contextlib.suppress(OSError):  # the other side is closed
                while chunk := os.read(terminal, 4096):
                    said += chunk
            assert process.wait(120) == 0
        os.close(terminal)
    lines = said.decode().replace("\r", "").splitlines()
    assert "instance: .vm1" in lines
    assert "SUCCESS: instance vm1 registered" in lines
    assert "instance vm1 verified" in lines
    assert "" not in lines


def test_menu_waits_for_no_tpm_that_hangs(vms: tuple[Swtpm, Swtpm], monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM that takes the connection and says nothing is unreachable, and the menu goes on."""
    monkeypatch.setattr(attestation, "LIMIT_S", 0.5)
    os.kill(vms[0].pid, signal.SIGSTOP)
    try:
        said, _, code = menu("1", "vm1", "vm1/ak.pub", "2", "vm9", "5", options=("--tcti", vms[0].tcti))
    finally:
        os.kill(vms[0].pid, signal.SIGCONT)
    assert code == 0
    assert "did not answer within 0.5 s (tpm-unreachable)" in said[0]
    assert said[1:] == ["FAILURE: instance vm9 not registered"]


def test_menu_writes_no_public_key_where_it_may_not(tmp_path: Path) -> None:
    """A folder in its place is named; the menu does not begin."""
    with contextlib.chdir(tmp_path), environment(), Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        Path("id_tpm.pub").mkdir()
        out, err, code = run("menu", "--init", "--tcti", tpm.tcti)
        assert (out, code) == ("", 1)
        assert "file id_tpm.pub cannot be read: Is a directory (file-unreadable)" in err


def test_menu_takes_the_tpm_of_tpm2_tools(tmp_path: Path) -> None:
    """The default TCTI is theirs; what runs commands is refused there, too."""
    with contextlib.chdir(tmp_path), Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        with environment(TPM2TOOLS_TCTI=tpm.tcti):
            out, err, code = run("menu", "--init", stdin=b"1\nvm1\n\n2\nvm1\n5\n")
            assert (err, code, "instance vm1 verified\n" in out) == ("", 0, True)
        with environment(TPM2TOOLS_TCTI="cmd:touch hacked"):
            assert "(setting-invalid)" in run("menu", "--init")[1]
            said, _, code = menu("1", "vm2", "", "5")
            assert re.fullmatch("FAILURE: instance vm2 not registered: .*setting-invalid[)]", said[0])
            assert code == 0
        assert not Path("hacked").exists()


def test_menu_asks_for_the_tpm_where_there_is_none(tmp_path: Path) -> None:
    """Only then, and once."""
    with contextlib.chdir(tmp_path), environment(), Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        answers = f"{tpm.tcti}\n1\nvm1\n\n2\nvm1\n5\n"
        out, err, code = run("menu", "--init", stdin=answers.encode())
        assert (err, code) == ("", 0)
        assert out.count("TCTI of the TPM: ") == 1
        assert "instance vm1 verified\n" in out


def test_conditions_of_a_policy(vms: tuple[Swtpm, Swtpm]) -> None:
    """Each is set alone and leaves the others; what makes no sense is refused."""
    register("vm1", vms[0], record=False)
    watch = ("policy", "require-rounds", "vm1", "on")
    assert run(*watch, "--every", "5s", "--on-failure", "suspend", "--on-failure", "hook:page")[2] == 0
    assert run("policy", "require-approval", "vm1", "on")[2] == 0
    assert run("policy", "refuse-stale", "vm1", "on", "--for", "30d")[2] == 0
    assert run("policy", "require-attested-root", "vm1", "on")[2] == 0
    assert "only if attestation opened their disks" in run("policy", "show", "vm1")[0]
    shown = json.loads(run("policy", "show", "vm1", "--json")[0])["conditions"]
    assert (shown["watch"]["interval_s"], shown["watch"]["on_refused"]) == (5, ["suspend", "hook:page"])
    assert (shown["approval"], shown["stale_after_s"]) == (True, 30 * 86400)
    assert shown["attested_root"] is True
    assert "verified every 5 s" in run("policy", "show", "vm1")[0]
    for wrong in (("--on-failure", "hook:../sh"), ("--every", "30d"), ("--on-unreachable", "reboot")):
        out, err, code = run(*watch, *wrong)
        assert (out, code) == ("", 1)
        assert "(setting-invalid)" in err
    assert run("policy", "refuse-stale", "vm1")[2] == 2
    assert run("policy", "require-rounds", "vm1", "off")[2] == 0
    assert run("policy", "require-approval", "vm1", "off")[2] == 0
    assert run("policy", "refuse-stale", "vm1", "off")[2] == 0
    assert run("policy", "require-attested-root", "vm1", "off")[2] == 0
    shown = json.loads(run("policy", "show", "vm1", "--json")[0])["conditions"]
    assert (shown["watch"], shown["approval"], shown["stale_after_s"]) == (None, False, None)
    assert shown["attested_root"] is False
    assert "(not-found)" in run("policy", "require-rounds", "vm9", "on")[1]


def test_allow(vms: tuple[Swtpm, Swtpm]) -> None:
    """Until when is said, shown, and in the audit record with who said it."""
    register("vm1", vms[0], record=False)
    out, err, code = run("device", "allow", "vm1", "--for", "30m")
    assert (out, code) == ("", 0)
    assert "instance vm1 may unlock until 20" in err
    assert json.loads(run("device", "show", "vm1", "--json")[0])["allowed_until"] is not None
    assert "device allow" in run("audit", "--device", "vm1")[0]
    assert "(not-found)" in run("device", "allow", "vm9")[1]


def test_without_the_tools(vms: tuple[Swtpm, Swtpm], monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program is an error of ours, and no outcome of the machine's."""
    register("vm1", vms[0])
    monkeypatch.setenv("PATH", "/nonexistent")
    out, err, code = run("device", "verify", "vm1")
    assert (out, code) == ("", 1)
    assert "(program-missing)" in err


@pytest.mark.parametrize(
    ("tcti", "size", "sent"),
    [
        ("device:/dev/tpmrm0", 67, True),
        ("tabrmd", 67, True),
        ("device:/dev/tpmrm0", 8193, False),
        ("device:/dev/tpmrm0", None, False),
        ("swtpm:host=127.0.0.1,port=2321", 67, False),
    ],
)
async def test_the_caps_text_of_this_machine_goes_with_its_own_tpm_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tcti: str, size: int | None, sent: bool
) -> None:
    """Not with that of a virtual machine, and not where it is more than is read; a text that is named goes with any."""
    file = tmp_path / "cap-events"
    if size is not None:
        file.write_bytes(b"x" * size)
    monkeypatch.setattr(tpm2, "CAP_EVENTS", file)

    async def made(self: tpm2.Tpm2Tools, command: list[str], *_: object) -> None:
        for option in ("-m", "-s", "-o"):
            Path(command[command.index(option) + 1]).write_bytes(b"")  # noqa: ASYNC240 - a test's own few bytes

    monkeypatch.setattr(tpm2.Tpm2Tools, "_run", made)
    asked = (Reach(tcti, "0x81010002"), Selection.parse("sha256:15"), bytes(32), "nonce")
    assert (await tpm2.Tpm2Tools().quote(*asked)).cap_events == (b"x" * 67 if sent else None)
    assert (await tpm2.Tpm2Tools(cap_events=b"named").quote(*asked)).cap_events == b"named"


def test_a_name_that_is_used_again_has_no_old_history(vms: tuple[Swtpm, Swtpm]) -> None:
    """The rounds of the old TPM are not those of the new one; they stay in the record, and --all shows them."""
    register("vm1", vms[0])
    old = run("device", "history", "vm1")[0]
    assert "verified" in old
    assert run("device", "remove", "vm1", "--yes")[2] == 0
    assert run("device", "history", "vm1")[0] == old
    time.sleep(0.01)
    register("vm1", vms[0], record=False)
    assert "was never verified" in run("device", "history", "vm1")[1]
    assert run("device", "history", "vm1", "--all")[0] == old
