"""The agent, against the real server and a real TPM: what is known of a machine is right whatever fails."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.pin.bad_server import answer, odd_server
from tests.pin.conftest import Server
from tests.pin.machine import Machine, Operator, certificate, ended, header, pin_of
from tests.pin.signed_values.search import jws, write
from tests.ports import free_port

pytestmark = pytest.mark.slow

#: The machine that runs the tests is busy.
PATIENCE_S = 120


def cap(machine: Machine) -> None:
    """Do as the end of an initrd."""
    machine.tpm.run("tpm2", "pcrevent", "-Q", "15", stdin=b"tang-attest/v1 cap\n")


@pytest.fixture
def running(machine: Machine, server: Server, name: str, jwe: bytes) -> Machine:
    """A machine that enrolled, booted and runs."""
    assert machine.decrypt(jwe).returncode == 0
    cap(machine)
    return machine


@contextmanager
def agent(machine: Machine, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The agent, while it runs; its lines are in ``agent.log``."""
    with (machine.directory / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            ["clevis-attest-agent", *options],
            env=machine.environment,
            cwd=machine.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


def shown(operator: Operator, name: str) -> dict[str, Any]:
    """The server's view of the machine."""
    found: dict[str, Any] = json.loads(operator.run("device", "show", name, "--json"))
    return found


def history(operator: Operator, name: str) -> list[str]:
    """Outcomes, oldest first."""
    return [
        past["outcome"] for past in reversed(json.loads(operator.run("device", "history", name, "--json")))
    ]


def until(condition: Callable[[], bool], log: Path | None = None) -> None:
    """Wait for what the server or the agent does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it never happened"
        time.sleep(0.2)


def test_one_round(running: Machine, server: Server, name: str) -> None:
    """Exit codes of --once, and nothing left behind."""
    done = running.run("clevis-attest-agent", "--once")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert shown(server.operator, name)["outcome"] == "verified"
    running.tpm.run("tpm2", "pcrextend", f"4:sha256={'22' * 32}")
    done = running.run("clevis-attest-agent", "--once")
    assert (done.returncode, done.stderr) == (1, b"tang-attest: refused (pcr-mismatch)\n")
    assert history(server.operator, name) == ["verified", "refused"]
    assert running.leftovers() == []


def test_no_server(machine: Machine, server: Server, name: str, jwe: bytes, tmp_path: Path) -> None:
    """Exit code 3, with every server named."""
    kid = header(jwe)["kid"]
    first, second = free_port(), free_port()
    config = tmp_path / "agent.conf"
    config.write_text(f"# two\nurl=http://127.0.0.1:{first}/\nurl=http://127.0.0.1:{second}\n\nkid={kid}\n")
    done = machine.run("clevis-attest-agent", "--once", "--config", config)
    assert done.returncode == 3
    assert done.stderr.decode() == (
        f"tang-attest: http://127.0.0.1:{first}: cannot connect; http://127.0.0.1:{second}: cannot connect\n"
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("spk=x", "line 2: 'spk' is not known"),
        ("url=ftp://x", "line 2: url is not an http or https URL"),
        ("url=HTTP://x:70000", "line 2: http://x:70000: its port is not 1 to 65535"),
        ("kid=short", "line 2: kid is not a thumbprint"),
        ("spki=md5//x", "line 2: spki is not what curl"),
        ("ak=0x80000000", "line 2: ak is not a persistent handle"),
        ("$(touch hacked)", "line 2: it is not NAME=VALUE"),
    ],
)
def test_a_wrong_configuration(machine: Machine, line: str, why: str, tmp_path: Path) -> None:
    """It ends the agent, with the line's number; nothing in it is run."""
    config = tmp_path / "agent.conf"
    config.write_text(f"# mine\n{line}\n")
    done = machine.run("clevis-attest-agent", "--config", config)
    assert done.returncode == 1
    assert why in done.stderr.decode()
    assert not (machine.directory / "hacked").exists()


def test_not_enrolled(machine: Machine) -> None:
    """It says what to do."""
    done = machine.run("clevis-attest-agent")
    assert done.returncode == 1
    assert b"this machine is not enrolled" in done.stderr


def test_an_operator_asks(running: Machine, server: Server, name: str) -> None:
    """The held request is answered at once; without an agent it is unreachable, which is another exit code."""
    with agent(running) as process:
        until(lambda: shown(server.operator, name)["outcome"] == "verified", running.directory / "agent.log")
        assert (
            server.operator.run("device", "verify", name, "--timeout", "240") == f"instance {name} verified\n"
        )
        rounds = server.operator.run(
            "device", "watch", name, "--rounds", "2", "--delay", "0", "--timeout", "240"
        )
        assert rounds.splitlines()[-1] == f"instance {name} verified in 2 of 2 rounds"
        assert ended(process) < 20  # its request is held for fifty seconds
    silent = server.operator.try_run("device", "verify", name, "--timeout", "1")
    assert silent.returncode == 3
    assert "unreachable" in silent.stdout
    log = (running.directory / "agent.log").read_text()
    assert log == "tang-attest: verified\n"
    assert running.leftovers() == []


def test_what_it_runs_is_recorded_through_the_agent(running: Machine, server: Server, name: str) -> None:
    """A machine whose running PCRs are not what its boot's say (systemd extends PCR 15 too) gets its own policy."""
    running.tpm.run("tpm2", "pcrextend", f"15:sha256={'33' * 32}")
    with agent(running):
        until(lambda: shown(server.operator, name)["outcome"] == "refused")
        recorded = server.operator.run("device", "verify", name, "--record", "--timeout", "240")
        assert recorded == f"instance {name} verified\n"
        assert shown(server.operator, name)["running_policy"] == f"{name}-running"[:63]


def test_a_change_suspends_and_the_next_boot_asks_for_the_passphrase(
    running: Machine, server: Server, name: str, jwe: bytes
) -> None:
    """Noticed by itself; until a person resumes it, the disk stays closed whatever is booted."""
    server.operator.run("policy", "require-rounds", name, "on", "--every", "1s", "--on-failure", "suspend")
    with agent(running):
        until(lambda: shown(server.operator, name)["outcome"] == "verified")
        running.tpm.run("tpm2", "pcrextend", f"7:sha256={'44' * 32}")
        until(lambda: shown(server.operator, name)["suspended_by"] == "server")
    running.reboot()
    refused = running.decrypt(jwe)
    assert refused.returncode == 1
    assert b"refused (device-suspended)" in refused.stderr
    assert "tang-attest device resume" in running.console
    server.operator.run("device", "resume", name)
    assert running.decrypt(jwe).returncode == 0


def test_agent_killed(running: Machine, server: Server, name: str) -> None:
    """It is unreachable, not refused; started again, all is well, and the history has both."""
    with agent(running) as process:
        until(lambda: shown(server.operator, name)["outcome"] == "verified")
        before = shown(server.operator, name)["answered_at"]
        server.operator.run(
            *(
                "policy",
                "require-rounds",
                name,
                "on",
                "--every",
                "2s",
                "--misses",
                "5",
                "--on-failure",
                "suspend",
            )
        )
        until(lambda: shown(server.operator, name)["answered_at"] != before)
        ended(process, 9)
        until(lambda: shown(server.operator, name)["outcome"] == "unreachable")
        assert shown(server.operator, name)["suspended_by"] is None
    with agent(running):
        until(lambda: shown(server.operator, name)["outcome"] == "verified")
    assert history(server.operator, name) == ["verified", "unreachable", "verified"]


@pytest.fixture
def own_server(tmp_path: Path, machine: Machine) -> Operator:
    """A server of this test, which is not started."""
    return Operator(tmp_path / "own-server")


@pytest.mark.timeout(900)
def test_server_restarted(own_server: Operator, machine: Machine) -> None:
    """The agent comes back by itself, and a pause of the server makes nobody unreachable."""
    port = str(free_port())
    with own_server.serve("--port", port):
        jwe = machine.encrypt(url=f"http://127.0.0.1:{port}", name="m", token=own_server.token("m"))
        assert machine.decrypt(jwe).returncode == 0
        cap(machine)
        own_server.run("policy", "require-rounds", "m", "on", "--every", "5s", "--misses", "6")
    with agent(machine):
        with own_server.serve("--port", port):
            until(lambda: shown(own_server, "m")["outcome"] == "verified")
            before = shown(own_server, "m")["answered_at"]
        time.sleep(32)  # longer than the misses, which are longer than the agent's longest pause
        with own_server.serve("--port", port):
            until(lambda: shown(own_server, "m")["answered_at"] != before)
            assert history(own_server, "m") == ["verified"]
            begun = time.monotonic()
        assert time.monotonic() - begun < 40, "held requests do not keep the server from stopping"


def test_network_cut(own_server: Operator, machine: Machine) -> None:
    """Silence is unreachable; when packets flow again, the agent is there again without being started anew."""
    with own_server.serve() as port, Cable(port) as cable:
        jwe = machine.encrypt(url=f"http://127.0.0.1:{cable.port}", name="m", token=own_server.token("m"))
        assert machine.decrypt(jwe).returncode == 0
        cap(machine)
        with agent(machine):
            until(lambda: shown(own_server, "m")["outcome"] == "verified")
            own_server.run("policy", "require-rounds", "m", "on", "--every", "2s", "--misses", "5")
            cable.cut()
            until(lambda: shown(own_server, "m")["outcome"] == "unreachable")
            cable.mend()
            until(lambda: shown(own_server, "m")["outcome"] == "verified")
    assert history(own_server, "m") == ["verified", "unreachable", "verified"]


def test_pinned_key(own_server: Operator, machine: Machine, tmp_path: Path) -> None:
    """With the server's key pinned it talks to that server, and to no other."""
    crt, key = certificate(tmp_path)
    other, _ = certificate(_made(tmp_path / "other"))
    with own_server.serve("--tls-certificate", str(crt), "--tls-key", str(key)) as port:
        url = f"https://127.0.0.1:{port}"
        machine.encrypt(url=url, name="m", token=own_server.token("m"), spki=pin_of(crt))
        cap(machine)
        config = tmp_path / "agent.conf"
        config.write_text(f"spki={pin_of(crt)}\n")
        assert machine.run("clevis-attest-agent", "--once", "--config", config).returncode == 0
        config.write_text(f"spki={pin_of(other)}\n")
        done = machine.run("clevis-attest-agent", "--once", "--config", config)
        assert done.returncode == 3
        assert b"its public key is not the pinned one" in done.stderr


# --- the cap's text ---------------------------------------------------------------------------------------------------

CAPS = Path(__file__).parents[2] / "vectors" / "caps"


def booted(machine: Machine, jwe: bytes, vector: str) -> dict[str, Any]:
    """A boot that capped as *vector* says, and left in /run what that vector's machine sends."""
    machine.reboot()
    assert machine.decrypt(jwe).returncode == 0
    found: dict[str, Any] = json.loads((CAPS / f"{vector}.json").read_text())
    for event in found["texts"]:
        machine.tpm.run("tpm2", "pcrevent", "-Q", "15", stdin=event.encode())
    file = machine.directory / "cap-events"
    file.unlink(missing_ok=True)
    if found["sent"] is not None:
        file.write_text(found["sent"])
    machine.extra["CLEVIS_ATTEST_CAP_EVENTS"] = str(file)
    return found


@pytest.mark.parametrize("vector", ["attested", "thrice", "mixed", "silent", "extended-by-others"])
def test_the_agent_hands_over_what_the_cap_says(
    machine: Machine, server: Server, name: str, jwe: bytes, vector: str
) -> None:
    """A real TPM has the vector's value, and the server tells what the vector says."""
    found = booted(machine, jwe, vector)
    quoted = machine.tpm.run("tpm2", "pcrread", "sha256:15").stdout.decode()
    assert found["values"]["sha256"].upper() in quoted.upper()
    done = machine.run("clevis-attest-agent", "--once")
    known = shown(server.operator, name)
    assert (done.returncode == 0) == found["tells"]["explained"], done.stderr
    assert known["disks"] == found["tells"]["opened"]
    assert known["disks_not_told_because"] == found["tells"]["because"]
    assert known["volumes"] == [f"{how} {uuid}" for uuid, how in sorted(found["tells"]["volumes"].items())]
    assert machine.leftovers() == []


def test_a_passphrase_boot_suspends_where_an_attested_root_is_required(
    machine: Machine, server: Server, name: str, jwe: bytes
) -> None:
    """By the agent, and over a TCTI with a copy of the file; the list names the volume."""
    server.operator.run("policy", "require-attested-root", name, "on")
    server.operator.run("policy", "require-rounds", name, "on", "--on-failure", "suspend")
    [uuid] = booted(machine, jwe, "attested")["tells"]["volumes"]
    assert machine.run("clevis-attest-agent", "--once").returncode == 0
    assert f"attested {uuid}" in server.operator.run("device", "list")
    booted(machine, jwe, "passphrase")
    file = machine.directory / "cap-events"
    tcti = ("--tcti", machine.tpm.tcti, "--cap-events", str(file))
    refused = server.operator.try_run("device", "verify", name, *tcti)
    assert refused.returncode == 1
    assert (
        f"volume {uuid} was opened by a passphrase, not by attestation (root-not-attested)"
        in refused.stdout.lower()
    )
    assert f"passphrase {uuid}" in server.operator.run("device", "list")
    assert shown(server.operator, name)["suspended_by"] == "server"
    done = machine.run("clevis-attest-agent", "--once")
    assert (done.returncode, done.stderr) == (1, b"tang-attest: refused (root-not-attested)\n")
    assert "root-not-attested" in server.operator.run("device", "history", name)


def test_a_file_that_is_too_long_is_not_sent(machine: Machine, server: Server, name: str, jwe: bytes) -> None:
    """Then the machine does not tell; an older initrd's cap goes on."""
    booted(machine, jwe, "plain")
    (machine.directory / "cap-events").write_bytes(b"x" * 8193)
    assert machine.run("clevis-attest-agent", "--once").returncode == 0
    assert shown(server.operator, name)["disks_not_told_because"] == "its cap names no volume"


def test_a_server_of_1_0_gets_no_members_that_it_does_not_know(
    machine: Machine, server: Server, name: str, jwe: bytes, tmp_path: Path
) -> None:
    """Its challenge has no `cap_pcr`, and it refuses other members; nobody gets signed values in a round."""
    booted(machine, jwe, "attested")
    root = tmp_path / "root"
    write(root, "etc/clevis-attest/a.tang-attest.jws", jws("a"))
    machine.extra["CLEVIS_ATTEST_ROOT"] = str(root)
    wanted = {"nonce": "n" * 43, "selection": "sha256:0,15", "expires_in": 120, "evidence": ["quote"]}
    sent = []
    with odd_server() as odd:
        config = tmp_path / "agent.conf"
        config.write_text(f"url={odd.url}\nkid={header(jwe)['kid']}\n")
        for more in ({}, {"cap_pcr": 15, "versions": ["1.1", "1.2"]}):
            asked = json.dumps({"challenge": wanted | more}).encode()
            verdict = json.dumps({"outcome": "verified", "code": "ok"}).encode()
            odd.says = lambda _, asked=asked, verdict=verdict: answer(  # type: ignore[misc]  # bound now
                200, verdict if b"quote" in odd.posted[-1] else asked
            )
            done = machine.run("clevis-attest-agent", "--once", "--config", config)
            assert done.returncode == 0, done.stderr
            sent.append(json.loads(odd.posted[-1]))
    assert [sorted(body.keys() - {"pcrs", "signature"}) for body in sent] == [
        ["nonce", "quote"],
        ["cap_events", "nonce", "quote"],
    ]


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


class Cable:
    """Between the agent and the server: forwards, until it is cut; then connections are dropped and none is taken."""

    def __init__(self, target: int) -> None:
        self._target, self._whole = target, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []

    def __enter__(self) -> Cable:
        self._whole.set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Drop everything."""
        self._whole.clear()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def mend(self) -> None:
        """Forward again."""
        self._whole.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._whole.is_set():
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with ExitStack() as stack:
            stack.callback(sink.close)
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
