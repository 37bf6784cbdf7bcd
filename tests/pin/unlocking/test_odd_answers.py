"""Answers that are not tang-attest's lead on to the next server; nothing of them is shown at the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tang_attest.errors import ACTIONS
from tests.pin.bad_server import OddServer, answer, challenge, odd_server, problem, reply
from tests.pin.conftest import Server
from tests.pin.machine import PIN, SECRET, Machine, Operator, certificate, header, readdressed, with_header
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow

NOT_OURS = "no tang-attest answers there"
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Pair:
    """A machine whose disk has two servers, of which the first is odd."""

    machine: Machine
    odd: OddServer
    jwe: bytes

    def say(self, says: bytes | Callable[[bool], bytes]) -> None:
        self.odd.says = says if callable(says) else lambda _: says
        for said in ("console", "run/console"):
            (self.machine.directory / said).unlink(missing_ok=True)

    @property
    def alone(self) -> bytes:
        return readdressed(self.jwe, f"{self.odd.url}/x")


@pytest.fixture(scope="module")
def pair(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        tpm = stack.enter_context(Swtpm(directory / "tpm", banks=("sha256",)))
        odd = stack.enter_context(odd_server())
        machine = Machine(directory / "machine", tpm)
        name = "odd-answers"
        jwe = machine.encrypt(url=[f"{odd.url}/x", server.url], name=name, token=server.operator.token(name))
        machine.extra["CLEVIS_ATTEST_REQUEST_TIMEOUT"] = "20"
        yield Pair(machine, odd, jwe)


def told(answered: int, /, **members: object) -> bytes:
    """A problem of somebody else."""
    return answer(answered, json.dumps(members).encode(), PROBLEM)


def gateway(answered: int, /, **members: object) -> bytes:
    return answer(answered, json.dumps(members).encode(), "application/json")


OURS = {"code": "key-unknown", "detail": "Sign in.", "action": "Type it."}
TRAP = "Type the passphrase to finish the update."

ODD: dict[str, bytes] = {
    "portal": answer(200, b"<html>sign in</html>", "text/html"),
    "portal-401": answer(401, b"<html>sign in</html>", "text/html", 'WWW-Authenticate: Basic realm="x"'),
    "portal-403": answer(403, b"<html>blocked</html>", "text/html"),
    "portal-511": answer(511, b"<html>sign in</html>", "text/html"),
    "health": gateway(200, status="up"),
    "empty-200": answer(200, b"", "text/plain"),
    "empty-204": b"HTTP/1.1 204 X\r\nConnection: close\r\n\r\n",
    "empty-401": answer(401, b"", "text/plain"),
    "empty-404": answer(404, b"", "text/plain"),
    "created": gateway(201, id=1),
    "partial": answer(206, b"x", "text/plain"),
    "moved": answer(301, b"", "text/html", "Location: http://127.0.0.1:1/"),
    "found": answer(302, b"", "text/html", "Location: /login"),
    "see-other": answer(303, b"", "text/html", "Location: https://portal.invalid/"),
    "temporary": answer(307, b"", "text/html", "Location: http://127.0.0.1:1/"),
    "permanent": answer(308, b"", "text/html", "Location: http://127.0.0.1:1/"),
    "not-modified": answer(304, b"", "text/html"),
    "gateway-404-code": gateway(404, code="not-found", message="no such route"),
    "gateway-403-code": gateway(403, code="forbidden"),
    "gateway-404-known-code": gateway(404, status=404, **OURS),
    "gateway-403-pcr-mismatch": gateway(403, code="pcr-mismatch", status=403, detail="x", action="y"),
    "gateway-400-no-code": gateway(400, message="bad request"),
    "gateway-401-no-code": gateway(401, message="unauthorized"),
    "gateway-429": gateway(429, message="slow down"),
    "gateway-502": answer(502, b"<html>Bad Gateway</html>", "text/html"),
    "gateway-503": answer(503, b"upstream", "text/plain", "Retry-After: 1"),
    "gateway-500-json": gateway(500, code="internal"),
    "list": answer(403, b'["pcr-mismatch"]', PROBLEM),
    "number": answer(403, b"42", PROBLEM),
    "null": answer(403, b"null", PROBLEM),
    "broken-json": answer(403, b'{"code":"pcr-mismatch","status":403,', PROBLEM),
    "problem-of-others": told(403, type="about:blank", title="Forbidden", status=403, detail="No."),
    "problem-of-others-code": told(403, type="https://example/errors", code="forbidden", status=403, detail="No."),
    "problem-of-others-all": told(
        404, type="https://example/errors", code="key-unknown", status=404, detail="No.", action="Go."
    ),
    "problem-without-action": told(404, code="key-unknown", status=404, detail="No."),
    "problem-other-status": told(404, status=403, **OURS),
    "problem-status-text": told(404, status="404", **OURS),
    "problem-code-number": told(404, status=404, code=7, detail="No.", action="Go."),
    "problem-code-capitals": told(404, status=404, code="NOT_FOUND", detail="No.", action="Go."),
    "problem-type-mismatch": told(404, type="urn:tang-attest:capped", status=404, **OURS),
    "challenge-html": answer(401, challenge().split(b"\r\n\r\n", 1)[1], "text/html"),
    "point-other-curve": reply(crv="P-256"),
    "point-no-point": reply(),
    "point-private": reply(d="A" * 88),
    "point-short": reply(x="AAAA"),
    "plain-text-point": answer(200, b"x y EC P-521", "text/plain"),
    "tang-adv": answer(200, b'{"payload":"e30","protected":"e30","signature":"e30"}', "application/jose+json"),
    "huge": answer(200, b"x" * 400_000, "text/html"),
    "huge-403": answer(403, b" " * 400_000, PROBLEM),
    "nuls": answer(200, b"\0" * 5000, "application/octet-stream"),
    "truncated": answer(200, b"x" * 1000, "text/html")[:-500],
    "truncated-problem": problem(403, "pcr-mismatch")[:-20],
    "empty-reply": b"",
    "http-0.9": b"hello\n",
    "not-http": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "tls-alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "bad-chunk": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n0\r\n\r\n",
    "bad-length": b"HTTP/1.1 200 X\r\nContent-Length: many\r\n\r\nxx",
}  # fmt: skip

#: Ours beyond doubt as far as it goes; the connection broke, so nothing is said of tang-attest.
_BROKEN = {"bad-chunk", "truncated-problem"}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_answer_leads_on_to_the_next_server(pair: Pair, kind: str) -> None:
    """The second server opens the disk; without one, the line names the URL and says that no tang-attest is there."""
    pair.say(ODD[kind])
    opened = pair.machine.decrypt(pair.jwe)
    assert opened.stdout == SECRET, opened.stderr
    assert opened.stderr == b""
    assert pair.machine.console == ""
    assert pair.machine.last["code"] == "ok"

    alone = pair.machine.decrypt(pair.alone)
    said = alone.stderr.decode()
    assert (alone.returncode, alone.stdout) == (1, b"")
    assert said.startswith(f"tang-attest: no server gave an answer: {pair.odd.url}/x: ")
    assert NOT_OURS in said or kind in _BROKEN or "cannot compute with its reply" in said
    assert pair.machine.last["code"] == "unreachable"
    assert pair.machine.leftovers() == []


@pytest.mark.parametrize(
    "kind", ["portal", "empty-200", "gateway-403-code", "empty-reply", "gateway-502", "nuls"]
)
def test_a_server_that_goes_odd_after_the_evidence_leads_on(pair: Pair, kind: str) -> None:
    """The second server gets a quote of its own."""
    pair.say(lambda proved: ODD[kind] if proved else challenge())
    assert pair.machine.decrypt(pair.jwe).stdout == SECRET


def test_a_second_challenge_that_is_none_leads_on(pair: Pair) -> None:
    """As the first would."""
    pair.say(lambda proved: answer(401, b"", "text/plain") if proved else challenge())
    assert pair.machine.decrypt(pair.jwe).stdout == SECRET


def test_a_proxy_may_drop_the_content_type(pair: Pair) -> None:
    """A challenge and a refusal are known by their members then."""
    bare = problem(403, "capped").replace(b"Content-Type: application/problem+json\r\n", b"")
    pair.say(
        lambda proved: (
            bare if proved else challenge().replace(b"Content-Type: application/problem+json\r\n", b"")
        )
    )
    refused = pair.machine.decrypt(pair.jwe)
    assert refused.stderr.startswith(b"tang-attest: refused (capped): ")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_ours_that_is_busy_leads_on(pair: Pair, status: int) -> None:
    """It is named by its code."""
    pair.say(problem(status, "unavailable"))
    assert pair.machine.decrypt(pair.jwe).stdout == SECRET
    assert f"it answered {status} (unavailable)" in pair.machine.decrypt(pair.alone).stderr.decode()


@pytest.mark.parametrize(
    "kind",
    ["portal", "portal-403", "health", "found", "gateway-404-code", "gateway-403-code", "gateway-502", "huge",
     "truncated", "empty-reply", "empty-200", "empty-204", "not-http", "problem-of-others-all", "nuls"],
)  # fmt: skip
def test_binding_goes_on_to_the_next_server_too(pair: Pair, server: Server, kind: str) -> None:
    """Anything but an advertisement is passed over; alone, the address is named."""
    pair.odd.gets = ODD[kind]
    try:
        bound = pair.machine.try_encrypt("-y", url=[f"{pair.odd.url}/x", server.url], name="odd-answers")
        assert bound.returncode == 0, bound.stderr
        alone = pair.machine.try_encrypt("-y", url=f"{pair.odd.url}/other", name="elsewhere", token="t" * 20)
        assert alone.returncode == 1
        assert f"no server gave an answer: {pair.odd.url}/other/adv: " in alone.stderr.decode()
    finally:
        pair.odd.gets = answer(503, b"", "text/html")


def test_https_to_a_port_that_speaks_http(pair: Pair, server: Server) -> None:
    """Its own sentence: neither the certificate nor the clock is at fault."""
    url = server.url.replace("http://", "https://")
    said = pair.machine.try_encrypt(
        "-y", url=f"{url}/other", name="elsewhere", token="t" * 20, spki="sha256//" + "A" * 43 + "="
    )
    assert said.returncode == 1
    assert b"it speaks http, and the URL says https" in said.stderr
    assert b"clock" not in said.stderr


# --- words at the prompt -----------------------------------------------------------------------------------------

#: Codes that no unlock is answered with: of enrollment, announcements, running machines, the admin API and commands.
NOT_AT_UNLOCK = {
    "announcements-full", "state-in-use", "device-unreachable", "ima-missing", "ima-incomplete", "ima-malformed",
    "ima-mismatch", "ima-not-allowed", "cap-missing", "root-not-attested", "root-not-told", "cap-malformed", "token-invalid", "token-expired", "token-used", "token-used-up", "token-revoked", "name-taken", "device-exists",
    "session-invalid", "ak-unsuitable", "ek-malformed", "ek-mismatch", "ek-expired", "certificate-malformed",
    "ek-unsupported", "ek-untrusted", "ek-not-registered", "ek-registered", "ek-list-invalid", "activation-failed", "admin-token-invalid", "transport-insecure",
    "scope-missing", "policy-not-granted", "media-type-unsupported", "selection-invalid", "values-invalid",
    "values-known", "values-all-zero", "change-invalid", "would-refuse", "rollout-unfinished", "rollout-changed",
    "not-suspended", "tpm-unreachable", "hook-failed", "webhook-failed", "program-missing", "observation-missing", "observation-ambiguous",
    "setting-invalid", "state-missing", "state-exists", "schema-old", "schema-new", "database-not-empty",
    "backup-damaged", "backup-foreign", "secret-missing", "audit-changed", "audit-cut", "audit-unsealed",
    "file-exists", "file-unreadable", "permission-denied", "database-moved", "document-invalid", "rules-invalid", "key-malformed",
    "archive-damaged", "archive-elsewhere", "archive-foreign", "audit-archived", "key-in-use", "key-last", "key-not-retired",
    "policy-in-use", "policy-same", "policy-unfit", "address-taken", "file-unwritable", "port-privileged",
    "act-changed", "act-expired", "act-forged", "act-reused", "act-unknown", "act-used", "check-runs", "form-expired",
    "form-malformed", "link-expired", "link-invalid", "link-used", "notify-failed", "operator-same",
    "operators-required", "origin-foreign", "passkey-invalid", "passkey-unknown", "role-missing", "sign-in-required",
    "signer-unsafe", "signer-unsuitable",
}  # fmt: skip


def known_codes() -> set[str]:
    """The codes of the pin's list."""
    source = (PIN / "lib/clevis-attest-functions").read_text()
    start = source.index("attest_refusal() {")
    body = source[start : source.index("\n}\n", start)].replace("\\\n", "")
    listed = re.findall(r"^        ([a-z| -]+)\)", body, re.MULTILINE)
    return {code.strip() for group in listed for code in group.split("|")}


def test_the_pin_has_words_for_every_code_of_an_unlock() -> None:
    """A new code is added to the pin's list or to the one above, so the pin's cannot fall behind."""
    unknown = set(ACTIONS) - NOT_AT_UNLOCK - known_codes()
    assert not unknown, "give them words in attest_refusal() of clevis-attest-functions, or list them here"
    assert not NOT_AT_UNLOCK & known_codes()


@pytest.mark.parametrize("code", sorted(known_codes() - {"not-found", "method-not-allowed"}))
def test_a_refusal_is_in_our_words(pair: Pair, code: str) -> None:
    """Nothing of the server's text is shown or kept, and nobody is led to type anything into refused software."""
    pair.say(
        problem(403, code, detail=TRAP, action=TRAP, title=TRAP, type=f"urn:tang-attest:{code}", pcrs=[4, 11])
    )
    refused = pair.machine.decrypt(pair.jwe)
    line = refused.stderr.decode()
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert re.fullmatch(
        rf"tang-attest: refused \({code}\): [^\n]+ \(PCR 4: boot loader, kernel; PCR 11: unified kernel image\) [^\n]+\.\n",
        line,
    )
    assert pair.machine.console == f"\r\n{line[:-1]}\r\n"
    assert pair.machine.last["code"] == code
    kept = (pair.machine.directory / "run" / "last.json").read_text()
    status = pair.machine.run("clevis-attest-status").stdout.decode()
    for text in (line, kept, status):
        assert "passphrase" not in text.lower()
        assert "DEVICE" not in text


@pytest.mark.parametrize(
    "code",
    [
        "type-the-passphrase-to-finish-the-update",
        "ok",
        "unknown",
        "unreachable",
        "press-enter",
        "a",
        "state-frozen",
    ],
)
def test_an_unknown_code_gets_one_neutral_sentence(pair: Pair, code: str) -> None:
    """A code can be a sentence, too: one that is not in our list is not shown."""
    pair.say(problem(403, code, detail=TRAP, action=TRAP, type=f"urn:tang-attest:{code}"))
    line = pair.machine.decrypt(pair.jwe).stderr.decode()
    assert line == (
        "tang-attest: refused (unknown): the server refused for a reason that this pin does not know. "
        "Look at it on the server with 'tang-attest device show odd-answers'.\n"
    )
    assert pair.machine.console == f"\r\n{line[:-1]}\r\n"
    assert pair.machine.last["code"] == "unknown"
    assert TRAP not in (pair.machine.directory / "run" / "last.json").read_text()


@pytest.mark.parametrize(
    "pcrs",
    [
        "4; type the passphrase",
        ["4"],
        [24],
        [99],
        [-1],
        [4.5],
        [[4]],
        {"4": 1},
        [4, "x"],
        list(range(24)) * 2,
    ],
)
def test_pcrs_are_numbers_or_not_shown(pair: Pair, pcrs: object) -> None:
    """Numbers that no PCR has are left out, with the others."""
    pair.say(problem(403, "pcr-mismatch", pcrs=pcrs))
    line = pair.machine.decrypt(pair.jwe).stderr.decode()
    assert line.startswith(
        "tang-attest: refused (pcr-mismatch): the PCRs are not as approved. Look at it on the server"
    )


def test_approving_comes_first(pair: Pair) -> None:
    """If approval helps, the message names the command and the machine, and say that the rest happens by itself."""
    for code in ("pcr-mismatch", "policy-empty", "state-expired", "state-used-up"):
        pair.say(problem(403, code))
        line = pair.machine.decrypt(pair.jwe).stderr.decode()
        assert (
            "Look at it on the server and run 'tang-attest approve odd-answers' there: this machine then opens by itself."
            in line
        )


def test_a_name_in_the_header_is_a_name(pair: Pair) -> None:
    """The author of the header writes no sentence."""
    members = header(pair.alone)
    members["clevis"]["attest"]["name"] = TRAP
    pair.say(problem(403, "pcr-mismatch"))
    line = pair.machine.run("clevis-decrypt-attest", stdin=with_header(pair.alone, members)).stderr.decode()
    assert "approve DEVICE" in line
    assert "passphrase" not in line


def test_no_message_of_the_pin_asks_for_a_passphrase() -> None:
    """Not in any line that can come to a console; comments may."""
    for script in ("clevis-decrypt-attest", "lib/clevis-attest-functions"):
        code = [
            line for line in Path(PIN / script).read_text().splitlines() if not line.lstrip().startswith("#")
        ]
        assert not [line for line in code if "passphrase" in line.lower()]


def test_http_to_a_port_that_speaks_https(pair: Pair, tmp_path: Path) -> None:
    """The same for a typing mistake in the other direction, where a disk is bound and where it is opened."""
    operator = Operator(tmp_path / "state")
    crt, key = certificate(tmp_path)
    with operator.serve("--tls-certificate", str(crt), "--tls-key", str(key)) as port:
        bound = pair.machine.try_encrypt(
            "-y", url=f"http://127.0.0.1:{port}/other", name="elsewhere", token="t" * 20
        )
        opened = pair.machine.decrypt(readdressed(pair.jwe, f"http://127.0.0.1:{port}"))
    for said in (bound, opened):
        assert said.returncode == 1
        assert b"it may speak https, and the URL says http" in said.stderr


@pytest.mark.parametrize(
    "words",
    [
        "<title>400 The plain HTTP request was sent to HTTPS port</title>",
        "Client sent an HTTP request to an HTTPS server.\n",
        "<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.<br /></p>",
    ],
)
def test_http_to_a_proxy_that_speaks_https(pair: Pair, words: str) -> None:
    """nginx, Go and Apache answer in the clear, and say it in their words; the pin says it in its own."""
    pair.odd.gets = answer(400, words.encode(), "text/html")
    try:
        bound = pair.machine.try_encrypt("-y", url=f"{pair.odd.url}/x", name="elsewhere", token="t" * 20)
    finally:
        pair.odd.gets = answer(503, b"", "text/html")
    assert bound.returncode == 1
    assert b"it speaks https, and the URL says http: change the URL" in bound.stderr
    pair.say(answer(400, words.encode(), "text/html"))
    assert b"it speaks https, and the URL says http" in pair.machine.decrypt(pair.alone).stderr
