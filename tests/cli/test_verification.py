"""Verification of running machines by command and by menu, with real TPMs that this machine reaches."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest.ports import Reach
from tang_attest.programs import tpm2
from tang_attest.protocol.pcr import Selection
from tests.cli.transcript import environment, run
from tests.swtpm import Swtpm

ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"


def virtual_machine(directory: Path) -> Swtpm:
    """A TPM with an AK at the usual handle, and its public area in ``ak.pub`` beside it."""
    tpm = Swtpm(directory, banks=("sha256",))
    tpm.start()
    tpm.run(
        *("tpm2", "createprimary", "-Q", "-C", "o", "-G", "ecc256:ecdsa-sha256:null"),
        *("-a", ATTRIBUTES, "-c", "ak.ctx"),
    )
    tpm.run("tpm2", "evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", "0x81010002")
    tpm.run("tpm2", "readpublic", "-Q", "-c", "0x81010002", "-o", "ak.pub")
    return tpm


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[tuple[Swtpm, Swtpm]]:
    """vm1 and vm2, and an initialized server state in the current directory."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(tmp_path))
        stack.enter_context(environment())
        assert run("init")[2] == 0
        machines = []
        for name in ("vm1", "vm2"):
            machines.append(virtual_machine(tmp_path / name))
            stack.callback(machines[-1].stop)
        yield machines[0], machines[1]


def register(name: str, tpm: Swtpm, *, record: bool = True) -> None:
    """Register, and take what it runs now as what it shall run."""
    done = run("device", "register", name, "--ak-public", f"{name}/ak.pub", "--tcti", tpm.tcti)
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
    assert run("device", "verify", "vm9") == ("FAILURE: instance vm9 not registered\n", "", 1)
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
    assert [line.split()[2] for line in history.splitlines()[1:]] == ["unreachable", "refused", "verified"]
    assert run("device", "verify")[2] == 2


def test_without_a_reference_nobody_is_verified(vms: tuple[Swtpm, Swtpm]) -> None:
    """A machine of which nothing is known runs nothing approved."""
    register("vm1", vms[0], record=False)
    out, _, code = run("device", "verify", "vm1")
    assert code == 1
    assert "(policy-empty)" in out


def test_another_tpm_is_refused(vms: tuple[Swtpm, Swtpm]) -> None:
    """Whoever answers with a machine's neighbor's TPM has not that machine's key."""
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
    """What is judged while it runs need not be what is judged at boot."""
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
    """Who looks does not matter, what was seen does."""
    register("vm1", vms[0])
    assert run("policy", "watch", "vm1", "--on-failure", "suspend")[2] == 0
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
    out, err, code = run("device", "register", "vm1", "--ak-public", "vm1/ak.pub", "--tcti", tcti)
    assert (out, code) == ("", 1)
    assert "(setting-invalid)" in err
    assert not Path("hacked").exists()


def test_removal_forgets_the_running_policy(vms: tuple[Swtpm, Swtpm]) -> None:
    """What was recorded for a machine goes with it; its history stays."""
    register("vm1", vms[0])
    assert "vm1-running" in run("policy", "list")[0]
    assert run("device", "remove", "vm1", "--yes")[2] == 0
    assert "vm1" not in run("policy", "list")[0]
    assert "verified" in run("device", "history", "vm1")[0]


def test_menu(vms: tuple[Swtpm, Swtpm]) -> None:
    """The session of the charter: register two, verify, watch, remove, verify the removed and the other, exit."""
    answers = [
        *("1", "vm1", "vm1/ak.pub", vms[0].tcti, "", "yes"),
        *("1", "vm2", "vm2/ak.pub", vms[1].tcti, "", "yes"),
        *("2", "vm1"),
        *("3", "vm1", "3", "0.1"),
        *("4", "vm1", "yes"),
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
        "SUCCESS: state of vm1 recorded",
        "SUCCESS: instance vm2 registered",
        "SUCCESS: state of vm2 recorded",
        "instance vm1 verified",
        "round: 1 succeeded",
        "round: 2 succeeded",
        "round: 3 succeeded",
        "instance vm1 verified in 3 of 3 rounds",
        "SUCCESS: instance vm1 removed",
        "FAILURE: instance vm1 not registered",
        "instance vm2 verified",
    ]


def test_menu_goes_on_after_a_mistake(vms: tuple[Swtpm, Swtpm]) -> None:
    """A wrong choice, a wrong number, a missing file, no for an answer; and it ends with its input."""
    answers = ["7", "x", "1", "vm1", "nowhere", "", "3", "vm1", "many", "1", "4", "vm1", "no"]
    out, err, code = run("menu", stdin="".join(f"{answer}\n" for answer in answers).encode())
    assert code == 0
    assert err.count("a choice is 1 to 5") == 2
    assert "file-unreadable" in err
    assert "rounds is a number" in err
    assert "nothing was removed" in out


def test_conditions_of_a_policy(vms: tuple[Swtpm, Swtpm]) -> None:
    """Each is set alone and leaves the others; what makes no sense is refused."""
    register("vm1", vms[0], record=False)
    watch = ("policy", "watch", "vm1")
    assert run(*watch, "--every", "5s", "--on-failure", "suspend", "--on-failure", "hook:page")[2] == 0
    assert run("policy", "require-approval", "vm1", "on")[2] == 0
    assert run("policy", "refuse-stale", "vm1", "--after", "30d")[2] == 0
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
    assert run(*watch, "--off")[2] == 0
    assert run("policy", "require-approval", "vm1", "off")[2] == 0
    assert run("policy", "refuse-stale", "vm1", "--off")[2] == 0
    assert run("policy", "require-attested-root", "vm1", "off")[2] == 0
    shown = json.loads(run("policy", "show", "vm1", "--json")[0])["conditions"]
    assert (shown["watch"], shown["approval"], shown["stale_after_s"]) == (None, False, None)
    assert shown["attested_root"] is False
    assert "(not-found)" in run("policy", "watch", "vm9")[1]


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
