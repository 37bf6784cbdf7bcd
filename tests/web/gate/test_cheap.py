"""Refused cheaply: a stranger without a key, a token or a session hears so before anything costs the server."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tang_attest.errors import Malformed
from tang_attest.protocol.values.points import Point
from tang_attest.web.gate.bodies import MAX_BODY
from tang_attest.web.gate.limits import RequestLimits
from tang_attest.web.wire import (
    AnnounceBody,
    AttestMember,
    EnrollBody,
    FinishBody,
    ProveBody,
    parse_json,
    validate,
)
from tests.attester import Attester, members
from tests.server import Server, new_x

UNKNOWN = "A" * 43
NO_RATES = RequestLimits(address_rate=0, device_rate=0)


@asynccontextmanager
async def asked(server: Server, head: str, body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """A connection on which *head* (lines without their ends) and *body* were sent."""
    reader, writer = await asyncio.open_connection(server.client.host, server.client.port)
    writer.write("\r\n".join([*head.splitlines(), "Host: x", "", ""]).encode() + body)
    try:
        yield reader
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body (JSON) of the next answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode()
    status, *lines = head.splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(status.split()[1]), headers, json.loads(body) if body else None


# --- encodings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "x-gzip", "gzip, identity", "q"]
)
@pytest.mark.parametrize(
    "target", ["/rec/{kid}", f"/rec/{UNKNOWN}", "/attest/enroll", "/attest/enroll/finish"]
)
async def test_nothing_is_unpacked(
    server: Server, attester: Attester, exchanges: list[Point], encoding: str, target: str
) -> None:
    """415, a problem of ours that says which encoding is taken, whatever the body is; and no more of the connection."""
    kid = await server.enroll(attester)
    body = gzip.compress(json.dumps({"changes": [{}] * 80_000}).encode())
    head = (
        f"POST {target.format(kid=kid)} HTTP/1.1\nContent-Encoding: {encoding}\nContent-Length: {len(body)}"
    )
    async with asked(server, head, body) as reader:
        status, headers, problem = await answer_of(reader)
        assert (status, problem["code"]) == (415, "encoding-unsupported")
        assert headers["content-type"] == "application/problem+json"
        assert headers["accept-encoding"] == "identity"
        assert await reader.read() == b""
    assert exchanges == []


async def test_what_is_not_encoded_passes(server: Server, attester: Attester) -> None:
    """``identity`` is no encoding, and a request without a body has none."""
    kid = await server.enroll(attester)
    data = json.dumps(dict(members(new_x()))).encode()
    answer = await server.request("POST", f"/rec/{kid}", data=data, headers={"Content-Encoding": "Identity"})
    assert answer.status == 401
    assert (await server.request("GET", "/adv", headers={"Content-Encoding": "gzip"})).status == 200


# --- the key, the token, the session: first ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/rec/{}", "/attest/announce/{}", "/attest/agent/{}/evidence", "/attest/agent/{}"]
)
@pytest.mark.parametrize("length", [MAX_BODY, 5000])
async def test_an_unknown_key_is_told_before_a_body_comes(server: Server, target: str, length: int) -> None:
    """404 to the head alone, where no more than a point would be read."""
    head = f"POST {target.format(UNKNOWN)} HTTP/1.1\nContent-Length: {length}"
    async with asked(server, head) as reader:
        status, _, problem = await answer_of(reader)
    assert (status, problem["code"]) == (404, "key-unknown")


@pytest.mark.parametrize(
    "target", ["/rec/{}", "/attest/announce/{}", "/attest/agent/{}/evidence", "/attest/agent/{}"]
)
@pytest.mark.parametrize("body", [b"{", b"[]", b'{"attest":1}', b'{"a":1,"b":2}', b"\xff", b"[" * 100])
async def test_an_unknown_key_is_told_rather_than_what_else_is_wrong(
    server: Server, target: str, body: bytes
) -> None:
    """404, although the body is no good either."""
    answer = await server.post(target.format(UNKNOWN), body)
    assert (answer.status, answer.code) == (404, "key-unknown")


@pytest.mark.parametrize("length", [200, 5000, MAX_BODY])
async def test_a_client_that_asks_first_is_told_no(server: Server, attester: Attester, length: int) -> None:
    """``Expect: 100-continue`` is answered only where the body will be read."""
    kid = await server.enroll(attester)
    expecting = f"Expect: 100-continue\nContent-Length: {length}"
    if length > 4096:
        async with asked(server, f"POST /rec/{UNKNOWN} HTTP/1.1\n{expecting}") as reader:
            assert (await answer_of(reader))[0] == 404
    async with asked(server, f"POST /rec/{kid} HTTP/1.1\n{expecting}") as reader:
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_an_unknown_token_is_told_first(server: Server, attester: Attester) -> None:
    """403 to who has no token, whatever else is wrong; 400 to who has one."""
    for token, code in (("A" * 43, "token-invalid"), (None, "token-invalid"), (7, "token-invalid")):
        answer = await server.post("/attest/enroll", {"name": "pi-b", "token": token, "surplus": 1})
        assert (answer.status, answer.code) == (403, code)
    answer = await server.begin(attester, "pi-b", await server.token(), ak=7)
    assert (answer.status, answer.code) == (400, "request-malformed")


@pytest.mark.parametrize(
    ("target", "member"),
    [
        ("/attest/enroll", "token"),
        ("/attest/enroll/finish", "session"),
        ("/attest/enroll/selection", "session"),
        ("/rec/{}", "kty"),
        ("/attest/announce/{}", "nonce"),
        ("/attest/agent/{}", "ticket"),
        ("/attest/agent/{}/evidence", "nonce"),
    ],
)
async def test_half_of_a_surrogate_pair_is_no_defect(
    server: Server, attester: Attester, target: str, member: str
) -> None:
    """400 to any client, also where a value is looked at before the rest of its body."""
    kid = await server.enroll(attester)
    answer = await server.post(target.format(kid), f'{{"{member}":"\\ud800"}}'.encode())
    assert (answer.status, answer.code) == (400, "request-malformed")


async def test_a_foreign_session_is_told_first(server: Server) -> None:
    """403, before evidence is decoded."""
    for body in ({"session": "x" * 100, "surplus": 1}, {"session": None}, {}):
        answer = await server.post("/attest/enroll/finish", body)
        assert (answer.status, answer.code) == (403, "session-invalid")


@pytest.mark.parametrize("authorization", ["", "Authorization: Bearer " + "A" * 43 + "\n"])
async def test_an_admin_token_is_looked_at_before_a_body_comes(tmp_path: Path, authorization: str) -> None:
    """401 to the head alone."""
    async with Server(tmp_path / "state") as server:
        head = f"POST /admin/v1/policies/x/dry-run HTTP/1.1\n{authorization}Content-Length: {MAX_BODY}"
        async with asked(server, head) as reader:
            status, _, problem = await answer_of(reader)
        assert (status, problem["code"]) == (401, "admin-token-invalid")


async def test_an_application_is_small(server: Server) -> None:
    """No evidence belongs into it."""
    head = "POST /attest/enroll HTTP/1.1\nContent-Length: 32769"
    async with asked(server, head) as reader:
        status, _, problem = await answer_of(reader)
    assert (status, problem["code"]) == (413, "request-too-large")


async def test_an_open_key_takes_a_point(tmp_path: Path) -> None:
    """tangd's limit, told to the head alone."""
    async with Server(tmp_path / "state", plain_tang=True) as server:
        kid = await server.keys.import_key(new_x(), "exchange", rotated=False)
        async with asked(server, f"POST /rec/{kid} HTTP/1.1\nContent-Length: 65536") as reader:
            assert (await answer_of(reader))[0] == 413


# --- what a body may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"1" * 33 + b"}",
        b'{"a":1.' + b"1" * 100_000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        rb'{"a":"\ud800"}',
        rb'{"a":["x\udfff"]}',
        rb'{"\ud83d\ud83d":1}',
        b'{"a":"]"}' + b"[" * 40,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b'{"a":[' + b"{}," * 300 + b"{}]}",
        b"{" + b",".join(b'"%d":1' % number for number in range(300)) + b"}",
        b'{"a":"' + b"\\n" * 5000 + b'"}',
    ],
)
def test_json_is_utf_8_and_bounded(body: bytes) -> None:
    """One code for all of it."""
    with pytest.raises(Malformed) as caught:
        parse_json(body)
    assert caught.value.code == "request-malformed"


def test_pairs_of_surrogates_are_text() -> None:
    """JSON escapes a character beyond U+FFFF as two; a backslash before them makes none of them."""
    assert parse_json(rb'{"a":"\ud83d\ude00","b":"\\ud800"}') == {"a": "\U0001f600", "b": "\\ud800"}


def test_brackets_in_strings_are_no_depth() -> None:
    """Forty menu entries of a boot loader in an announcement."""
    assert parse_json(json.dumps({"changes": ["menuentry Debian {"] * 64}).encode())


@pytest.mark.parametrize("model", [AttestMember, EnrollBody, FinishBody, AnnounceBody, ProveBody])
@pytest.mark.parametrize(
    "value",
    [
        {f"member {number}": 1 for number in range(250)},
        {"changes": [{}] * 250},
        {"changes": [1] * 60, "nonce": 1, "quote": 1},
        {"nonce": "a" * 200_000},
        {"\ud800": 1},
        {"\0\x1b[2J": 1},
    ],
    ids=["members", "objects", "numbers", "long", "surrogate", "controls"],
)
def test_the_first_error_is_enough(model: Any, value: dict[str, Any]) -> None:
    """One sentence that a console can take, in less than a millisecond of processor."""
    best = 1.0
    for _ in range(5):
        begin = time.process_time()
        with pytest.raises(Malformed) as caught:
            validate(model, value)
        best = min(best, time.process_time() - begin)
        caught.value.sentence.encode()
        assert caught.value.sentence.isprintable()
    assert best < 0.001


@pytest.mark.parametrize(
    "target", ["/rec/{kid}", f"/rec/{UNKNOWN}", "/attest/announce/{kid}", "/attest/enroll"]
)
async def test_a_flood_of_members_costs_no_latency(tmp_path: Path, attester: Attester, target: str) -> None:
    """A hundred of the worst, one after another, cost less than a millisecond each beside what an empty one costs."""
    async with Server(tmp_path / "state", limits=NO_RATES) as server:
        kid = await server.enroll(attester)
        worst = json.dumps({"changes": [{}] * 1300, "name": 1, "token": 1}).encode()

        async def cost(body: bytes) -> float:
            begin = time.process_time()
            for _ in range(100):
                assert (await server.post(target.format(kid=kid), body)).status >= 400
            return (time.process_time() - begin) / 100

        await cost(b"[]")  # one-time initialization is done
        empty = min([await cost(b"[]") for _ in range(3)])
        assert min([await cost(worst) for _ in range(3)]) < empty + 0.001


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/attest/enroll", "POST"),
        ("/attest/enroll/finish", "POST"),
        ("/attest/announce/{kid}", "POST"),
        ("/attest/agent/{kid}", "POST"),
        ("/attest/agent/{kid}/evidence", "POST"),
        ("/attest/adv/{kid}", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(
    server: Server, attester: Attester, target: str, allowed: str
) -> None:
    """405, Allow, and a problem."""
    kid = await server.enroll(attester)
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} - {allowed}:
        answer = await server.request(method, target.format(kid=kid))
        assert (answer.status, answer.code) == (405, "method-not-allowed")
        assert answer.headers["Allow"] == allowed
        assert answer.body["detail"]


async def test_no_answer_names_the_server(server: Server, attester: Attester) -> None:
    """Neither good ones nor bad ones, of any route."""
    kid = await server.enroll(attester)
    for method, target in (
        ("GET", "/adv"),
        ("GET", "/adv/x"),
        ("GET", "/nothing"),
        ("POST", f"/rec/{kid}"),
        ("GET", f"/rec/{kid}"),
        ("GET", f"/attest/adv/{kid}"),
        ("POST", f"/attest/announce/{kid}"),
        ("GET", "/attest/enroll"),
        ("GET", "/admin/v1/openapi.json"),
        ("GET", "/admin/v1/devices"),
        ("GET", "/healthz"),
        ("GET", "/" + "x" * 5000),
        ("OPTIONS", "/"),
    ):
        assert "Server" not in (await server.request(method, target)).headers, target


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    ("target", "allowed"), [("/adv", "GET"), ("/adv/{kid}", "GET"), (f"/rec/{UNKNOWN}", "POST")]
)
async def test_a_wrong_method_of_tangs_routes_is_told_the_right_one(
    server: Server, method: str, target: str, allowed: str
) -> None:
    """405 as empty as tangd's, with Allow (RFC 9110, 15.5.6)."""
    answer = await server.request(method, target.format(kid=UNKNOWN))
    assert (answer.status, answer.body, answer.headers["Allow"]) == (405, b"", allowed)


HEALTH = b"GET /healthz %b\r\nHost: x\r\nConnection: keep-alive\r\n%b\r\n"


@pytest.mark.parametrize(
    ("request_", "version", "stays"),
    [
        (HEALTH % (b"HTTP/1.1", b""), b"1.1", True),
        (HEALTH % (b"HTTP/1.0", b""), b"1.0", True),
        (HEALTH % (b"HTTP/2.0", b""), b"1.1", False),
        (HEALTH % (b"HTTP/0.9", b""), b"1.1", False),
        (HEALTH % (b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", b"1.1", True),
        (HEALTH % (b"HTTP/1.0", b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", b"1.0", False),
    ],
    ids=["1.1", "1.0", "2.0", "0.9", "1.1 with chunks", "1.0 with chunks"],
)
async def test_an_answer_is_of_a_version_that_is_spoken(
    server: Server, request_: bytes, version: bytes, stays: bool
) -> None:
    """Another version, and framing in doubt, end the connection (RFC 9112, 2.3 and 6.1)."""
    reader, writer = await asyncio.open_connection(server.client.host, server.client.port)
    try:
        writer.write(request_ + HEALTH.replace(b"keep-alive", b"close") % (b"HTTP/1.1", b""))
        assert (await reader.readline()) == b"HTTP/%b 200 OK\r\n" % version
        rest = await reader.read()
        assert rest.count(b"HTTP/1.1 200 OK\r\n") == stays
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("coding", ["gzip, chunked", "GZIP,chunked", "deflate, chunked", "x, chunked"])
async def test_a_transfer_coding_is_refused(server: Server, attester: Attester, coding: str) -> None:
    """It is not unpacked, and not taken for the body."""
    kid = await server.enroll(attester)
    async with asked(
        server, f"POST /rec/{kid} HTTP/1.1\nTransfer-Encoding: {coding}", b"0\r\n\r\n"
    ) as reader:
        status, headers, problem = await answer_of(reader)
    assert (status, problem["code"]) == (415, "encoding-unsupported")
    assert headers["connection"] == "close"
