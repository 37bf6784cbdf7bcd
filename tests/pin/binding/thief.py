"""A man in the middle of an enrollment: takes the token for their own TPM.

The attacker gives the victim a credential that the victim's TPM can open, so that it goes on, and answers in the end with the
server's genuine 201 and advertisement: for the attacker's device.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tang_attest.protocol import tpm
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.values.base64url import b64u, unb64u
from tests.attester import Attester


class Thief:
    """Stands between a pin and the server at *upstream*."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.tpm = Attester()
        self.begun: dict[str, Any] = {}
        self.name = ""

    def begin(self, body: dict[str, Any]) -> dict[str, Any]:
        """Enroll the thief's TPM with the victim's token; the victim gets a credential for its own."""
        self.name = body["name"]
        mine = {"ak": b64u(self.tpm.ak_public), "ek": b64u(self.tpm.ek_public)}
        self.begun = self.forward("/attest/enroll", {"name": self.name, "token": body["token"]} | mine)
        victim = tpm.parse_ak(unb64u(body["ak"]))
        blob, secret = tpm.make_credential(tpm.parse_ek(unb64u(body["ek"])), victim.name, bytes(32))
        return self.begun | {"credential_blob": b64u(blob), "encrypted_secret": b64u(secret)}

    def finish(self) -> dict[str, Any]:
        """Finish the thief's own enrollment."""
        blob, encrypted = (unb64u(self.begun[member]) for member in ("credential_blob", "encrypted_secret"))
        secret = self.tpm.activate(blob, encrypted, tpm.parse_ak(self.tpm.ak_public).name)
        proof = activation_proof(self.begun["nonce"], secret)
        binding = enrollment_digest(self.begun["nonce"], self.name, proof)
        evidence = self.tpm.evidence("", binding, self.begun["selection"])
        del evidence["nonce"]
        return self.forward(
            "/attest/enroll/finish", {"session": self.begun["session"], "proof": proof} | evidence
        )

    def forward(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A request to the real server."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.upstream + path, data)  # noqa: S310 - http, on loopback
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - the same
            value: dict[str, Any] = json.load(answer)
            return value

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Their address."""
        thief = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, thief.forward(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/attest/enroll":
                    self.answer(200, thief.begin(body))
                else:
                    self.answer(201, thief.finish())

            def answer(self, status: int, value: dict[str, Any]) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
