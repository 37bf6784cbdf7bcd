"""Signed values in a real unlock: they are sent with the evidence, and never in its way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.pin.bad_server import OddServer, answer, challenge, odd_server, problem
from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine
from tests.pin.signed_values.search import jws, write
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow

PCRSIG = {"sha256": [{"pcrs": [11], "pkfp": "ab" * 32, "pol": "cd" * 32, "sig": "A" * 342 + "=="}]}


@dataclass
class Asked:
    """A machine that asks an odd server first, and then the real one."""

    machine: Machine
    odd: OddServer
    jwe: bytes
    root: Path
    #: Standard error of the last unlock.
    said: str = ""

    def unlock(self, says: Callable[[bool], bytes]) -> list[dict[str, Any]]:
        """Unlock, with the odd server saying that; the requests that it got."""
        self.odd.says = says
        self.odd.posted.clear()
        opened = self.machine.decrypt(self.jwe)
        assert opened.stdout == SECRET, opened.stderr.decode()
        self.said = opened.stderr.decode()
        return [json.loads(body) for body in self.odd.posted]


@pytest.fixture(scope="module")
def enrolled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """One machine for all tests."""
    directory = tmp_path_factory.mktemp("signed")
    with ExitStack() as stack:
        tpm = stack.enter_context(Swtpm(directory / "tpm", banks=("sha256",)))
        odd = stack.enter_context(odd_server())
        machine = Machine(directory / "machine", tpm)
        name = "signed-values"
        jwe = machine.encrypt(url=[f"{odd.url}/x", server.url], name=name, token=server.operator.token(name))
        yield Asked(machine, odd, jwe, directory)


@pytest.fixture
def asked(enrolled: Asked, tmp_path: Path) -> Asked:
    """The machine after a reboot, with a root of its own for its signed values."""
    enrolled.machine.reboot()
    enrolled.machine.extra = {"CLEVIS_ATTEST_ROOT": str(tmp_path)}
    return replace(enrolled, root=tmp_path)


KNOWN = ["1.1", "1.2"]


def _busy(proved: bool) -> bytes:
    return problem(503, "unavailable") if proved else challenge(versions=KNOWN)


def test_signed_values_are_sent_with_the_evidence_and_nowhere_else(asked: Asked) -> None:
    """Both kinds; a server that does not know them, or what they are, opens all the same."""
    write(asked.root, ".extra/tpm2-pcr-signature.json", json.dumps(PCRSIG))
    write(asked.root, "etc/clevis-attest/a.tang-attest.jws", jws("a"))
    bare, proved = asked.unlock(_busy)
    assert "attest" not in bare
    assert proved["attest"]["signed_values"] == {"pcrsig": PCRSIG, "statements": [jws("a")]}
    assert "critical" not in proved


def test_without_signed_values_the_request_is_what_it_was(asked: Asked) -> None:
    """No empty member."""
    assert "signed_values" not in asked.unlock(_busy)[1]["attest"]


def test_a_server_of_1_0_gets_none(asked: Asked) -> None:
    """It names no versions, and refuses members that it does not know.  A server of 1.1 gets them."""
    write(asked.root, "etc/clevis-attest/a.tang-attest.jws", jws("a"))
    _, proved = asked.unlock(lambda proved: problem(503, "unavailable") if proved else challenge())
    assert "signed_values" not in proved["attest"]
    older = challenge(versions=["1.1"])
    _, proved = asked.unlock(lambda proved: problem(503, "unavailable") if proved else older)
    assert "signed_values" in proved["attest"]


def test_odd_files_do_not_break_an_unlock(asked: Asked) -> None:
    """Each is one line in the log of this boot, not one of every attempt."""
    pcrsig = write(asked.root, ".extra/tpm2-pcr-signature.json", b"\x00")
    odd = write(asked.root, "etc/clevis-attest/a.tang-attest.jws", "no JWS")
    write(asked.root, "etc/clevis-attest/b.tang-attest.jws", jws("b"))
    notes = (
        f"tang-attest: {pcrsig} is skipped: it has a NUL byte\n"
        f"tang-attest: {odd} is skipped: it is not one compact JWS\n"
    )
    for said in (notes, ""):
        assert asked.unlock(_busy)[1]["attest"]["signed_values"] == {"statements": [jws("b")]}
        assert asked.said == said


@pytest.mark.parametrize(
    "refusal",
    [
        problem(400, "request-malformed"),
        problem(413, "request-too-large"),
        answer(413, b"<html>too large</html>", "text/html"),
        answer(400, b"", "text/html"),
    ],
    ids=["malformed", "too large", "proxy 413", "proxy 400"],
)
def test_a_server_that_cannot_read_them_is_asked_without(asked: Asked, refusal: bytes) -> None:
    """A server of before, or a proxy with a small limit: the same evidence, asked for anew, is sent alone."""
    write(asked.root, "etc/clevis-attest/a.tang-attest.jws", jws("a", 16000))

    def says(proved: bool) -> bytes:
        if not proved:
            return challenge(versions=KNOWN)
        return refusal if b"signed_values" in asked.odd.posted[-1] else problem(503, "unavailable")

    requests = asked.unlock(says)
    shape = [("attest" in body, "signed_values" in body.get("attest", {})) for body in requests]
    assert shape == [(False, False), (True, True), (False, False), (True, False)]


def test_the_largest_signed_values_beside_the_largest_event_log_are_not_too_much(asked: Asked) -> None:
    """The real server reads the request."""
    log = asked.root / "log"
    log.write_bytes(bytes(131072))
    asked.machine.extra["CLEVIS_ATTEST_EVENT_LOG"] = str(log)
    for number in range(8):
        write(asked.root, f".extra/{number}.tang-attest.jws", jws(f"{number}", 16384))
    many = {"sha256": PCRSIG["sha256"] * 20}
    write(asked.root, ".extra/tpm2-pcr-signature.json", json.dumps(many))
    wanted = challenge(evidence=["quote", "event-log"], event_log_limit=131072, versions=KNOWN)
    requests = asked.unlock(lambda proved: problem(503, "unavailable") if proved else wanted)
    assert len(asked.odd.posted[-1]) < 256 * 1024
    assert len(requests[1]["attest"]["signed_values"]["statements"]) == 3
