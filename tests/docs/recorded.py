"""A whole run, recorded: the pin with a software TPM enrolls, binds, unlocks, announces and is verified by a real server.

.venv/bin/python -m tests.docs.recorded      writes docs/protocol-examples.md
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tests.pin.machine import SECRET, Machine, Operator, header
from tests.swtpm import Swtpm

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "protocol-examples.md"
SELECTION: Final = "sha256:0,7,15"

#: Members that are another text in each run.
OPAQUE: Final = frozenset(
    (
        *("nonce", "quote", "signature", "pcrs", "session", "credential_blob", "encrypted_secret", "token"),
        *("ak", "ek", "kid", "x", "y", "proof", "payload", "protected", "request_id", "ticket"),
    )
)
HEADERS: Final = ("Content-Type", "WWW-Authenticate", "Cache-Control")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One request and its answer; bodies are JSON."""

    title: str
    method: str
    target: str
    body: Any
    status: int
    headers: tuple[tuple[str, str], ...]
    answer: Any

    def shown(self) -> str:
        """Return it as a section of the document."""
        said = f"    {self.method} {self.target}\n"
        if self.body is not None:
            said += f"    Content-Type: application/json\n\n{_pretty(self.body)}"
        got = f"    HTTP/1.1 {self.status}\n" + "".join(
            f"    {name}: {value}\n" for name, value in self.headers
        )
        return f"### {self.title}\n\n{said}\n{got}\n{_pretty(self.answer)}\n"

    def normalized(self) -> str:
        """Return it without what is another text in each run."""
        target = re.sub(r"[A-Za-z0-9_-]{43}", "KID", self.target)
        return replace(self, target=target, body=_normal(self.body), answer=_normal(self.answer)).shown()


def _pretty(value: Any) -> str:
    """Members one a line, below an indentation of four."""
    return "".join(f"    {line}\n" for line in json.dumps(value, indent=2, ensure_ascii=False).splitlines())


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: f"<{name}>" if name in OPAQUE and isinstance(member, str) else _normal(member)
            for name, member in value.items()
        }
    return [_normal(item) for item in value] if isinstance(value, list) else value


class Recorder:
    """A proxy in front of the server at *port*, which keeps what passes."""

    def __init__(self, port: int) -> None:
        self.seen: list[Message] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on(None)

            def do_POST(self) -> None:
                self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

            def _pass_on(self, body: bytes | None) -> None:
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as upstream:
                    upstream.request(self.command, self.path, body, {"Content-Type": "application/json"})
                    answer = upstream.getresponse()
                    text = answer.read()
                kept = tuple((name, value) for name in HEADERS if (value := answer.getheader(name)))
                message = Message(
                    title="",
                    method=self.command,
                    target=self.path,
                    body=json.loads(body) if body else None,
                    status=answer.status,
                    headers=kept,
                    answer=json.loads(text) if text else None,
                )
                recorder.seen.append(message)
                self.send_response(answer.status)
                for name, value in kept:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Pass requests on."""
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join(120)


TITLES: Final = (
    "The server's advertisement (5)",
    "Begin an enrollment (4.1)",
    "Finish it (4.2)",
    "Ask for an unlock (3.1)",
    "Prove (3.2)",
    "A refusal: the running system asks (3.5)",
    "Ask to announce (9)",
    "Announce the next boot (9)",
    "Ask for a round (10.1)",
    "Answer it (10.2)",
    "The device's advertisement (5)",
)


def record(directory: Path) -> tuple[list[Message], bytes]:
    """Return the messages of a run, and the JWE that was bound and opened."""
    operator = Operator(directory / "server")
    with Swtpm(directory / "tpm") as tpm, operator.serve() as port:
        recorder = Recorder(port)
        machine = Machine(directory / "machine", tpm)
        with recorder.running():
            # A boot measures something, so that the values are not zeros.
            for pcr in (0, 7):
                tpm.run("tpm2", "pcrevent", "-Q", str(pcr), stdin=b"measured")
            token = operator.token("pi-b", "--selection", SELECTION)
            jwe = machine.encrypt(url=recorder.url, name="pi-b", token=token)
            opened = machine.decrypt(jwe)
            assert opened.stdout == SECRET, opened.stderr.decode()
            tpm.run("tpm2", "pcrevent", "-Q", "15", stdin=b"tang-attest/v1 cap\n")
            assert machine.decrypt(jwe).returncode == 1
            kid = header(jwe)["kid"]
            _announce(recorder.url, tpm, directory, kid)
            agent = machine.run("clevis-attest-agent", "--once")
            assert agent.returncode == 0, agent.stderr.decode()
            _ask(recorder.url, "GET", f"/attest/adv/{kid}", None)
        seen = recorder.seen
    # The refused unlock asked as the first one did.
    chosen = [seen[index] for index in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]
    assert len(seen) == 12, [(each.target, each.status) for each in seen]
    return [replace(each, title=title) for title, each in zip(TITLES, chosen, strict=True)], jwe


def _announce(url: str, tpm: Swtpm, directory: Path, kid: str) -> None:
    """Announce an update that changes PCR 7; the label is that of a kernel package."""
    challenge = _ask(url, "POST", f"/attest/announce/{kid}", {})
    values, label = hashlib.sha256(b"firmware").digest() * 2 + bytes(32), "kernel 6.1.0-29"
    text = f"tang-attest/v1 announce\n{challenge['nonce']}\n{kid}\n{hashlib.sha256(values).hexdigest()}\n{label}\n"
    quote = ("tpm2", "quote", "-Q", "-c", "0x81010002", "-l", challenge["selection"], "-F", "values")
    digest = hashlib.sha256(text.encode()).hexdigest()
    parts = {name: directory / name for name in ("quote", "signature", "pcrs")}
    tpm.run(*quote, "-q", digest, "-m", parts["quote"], "-s", parts["signature"], "-o", parts["pcrs"])
    body = {"nonce": challenge["nonce"], **{name: b64u(path.read_bytes()) for name, path in parts.items()}}
    more = {"label": label, "values": b64u(values), "changes": ["PCR 7: shim 15.8"]}
    _ask(url, "POST", f"/attest/announce/{kid}", body | more)


def _ask(url: str, method: str, target: str, body: Any) -> Any:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)) as host:
        host.request(method, target, None if body is None else json.dumps(body))
        return json.loads(host.getresponse().read())


def b64u(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def document(messages: list[Message], jwe: bytes) -> str:
    """The page of examples."""
    protected = _pretty(header(jwe))
    return (
        "# Examples of the tang-attest protocol\n\n"
        "<!-- made by tests/docs/recorded.py; run: .venv/bin/python -m tests.docs.recorded -->\n\n"
        "The messages of one run of this project's pin, with a software TPM, and its server:\n"
        "[the specification](protocol.md) in whole messages, every byte of which can be verified.\n"
        "`tests/docs/test_protocol_examples.py` verifies them, and compares them with those of a new run.\n"
        "The token is used, the keys are of no machine, and the passphrase protects nothing.\n\n"
        "## Messages\n\n"
        + "\n".join(message.shown() for message in messages)
        + "\n## The disk's header\n\n### Its protected header (8)\n\n"
        + protected
        + "\n### The whole JWE\n\n    "
        + jwe.decode().strip()
        + "\n"
    )


def read(page: str) -> list[Message]:
    """Return the messages of the page.  Raises :class:`ValueError` for one that is no message."""
    found = []
    for title, text in re.findall(r"^### (.+)\n\n((?:    .*\n|\n)+)", page, re.MULTILINE):
        blocks = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in text.strip("\n").split("\n\n")]
        if not blocks[0].startswith(("GET ", "POST ")):
            continue
        head = blocks.pop(0).splitlines()
        method, target = head[0].split(" ")
        body = json.loads(blocks.pop(0)) if method == "POST" else None
        status, *headers = blocks.pop(0).splitlines()
        kept = tuple((name, value) for name, _, value in (line.partition(": ") for line in headers))
        message = Message(
            title=title,
            method=method,
            target=target,
            body=body,
            status=int(status.split(" ")[1]),
            headers=kept,
            answer=json.loads(blocks.pop(0)),
        )
        found.append(message)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(document(*record(Path(name))))
    print(f"wrote {PAGE}")
