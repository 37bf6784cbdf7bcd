"""Parsers of an enrollment's request: the body, its EK, its AK, and the EK's certificate as its NV index has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

from tang_attest.protocol import tpm
from tang_attest.protocol.checkquote.tools_files import public_area
from tang_attest.protocol.endorsement.endorsement import (
    issuer_digest,
    parse_roots,
    subject_digest,
    trim_certificate,
    verify_ek_certificate,
)
from tang_attest.protocol.endorsement.registered import parse_list
from tang_attest.protocol.enrollment import SECRET_SIZE, accept_ak, begin_activation, check_name
from tang_attest.web.wire import EnrollBody, FinishBody, parse_json, validate
from tests.attester import Attester
from tests.fuzz.target import Parser, Target
from tests.fuzz.vectors import certificates, quotes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_MACHINE = Attester()
_EK = tpm.parse_ek(_MACHINE.ek_public)
_AK = accept_ak(_MACHINE.ak_public)
_ROOTS = tuple(root for pem in certificates() for root in parse_roots(pem))


def body(data: bytes) -> None:
    """The first request."""
    application = validate(EnrollBody, parse_json(data)).application()
    check_name(application.name)
    assert len(application.ak) <= tpm.MAX_STRUCTURE


def finish(data: bytes) -> None:
    """The second request."""
    validate(FinishBody, parse_json(data)).evidence()


def ak(data: bytes) -> None:
    """An AK that is accepted can be named in a credential."""
    key = accept_ak(data)
    assert key.public == data
    begin_activation(_EK, key, bytes(SECRET_SIZE))


def ek(data: bytes) -> None:
    """For an EK that is accepted a credential can be made, or it is said why not."""
    begin_activation(tpm.parse_ek(data), _AK, bytes(SECRET_SIZE))


def certificate(data: bytes) -> None:
    """Nobody's certificate is for our EK, and its issuer can be looked up."""
    issuer_digest(trim_certificate(data))
    verify_ek_certificate(trim_certificate(data), _EK.spki, _ROOTS, (), NOW)
    raise AssertionError("a certificate of another key was accepted")


def intermediate(data: bytes) -> None:
    """An issuer that a machine sends along, beside a certificate that can be read."""
    verify_ek_certificate(_ROOTS[0].der, _EK.spki, _ROOTS, (data,), NOW)
    raise AssertionError("a certificate of another key was accepted")


def roots(data: bytes) -> None:
    """An operator's file; what is read from it can be read again, and looked up."""
    for root in parse_roots(data):
        assert parse_roots(root.der) == (root,)
        assert len(subject_digest(root.der)) == 32


def ek_list(data: bytes) -> None:
    """An operator's list of EKs: each machine of it has a digest and a name that can be kept."""
    for entry in parse_list(data, "web"):
        assert len(entry.ek_sha256) == 32
        check_name(entry.name)


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """A software TPM's keys, the vectors' AKs and certificates."""
    members = {"name": "pi-b", "token": "t" * 43, "ak": "AAAA", "ek": "AAAA", "ek_certificate": "MIIB"}
    yield body, json.dumps(members).encode()
    quoted = {"quote": "_1RD", "signature": "ABgA", "pcrs": "AAAA", "event_log": ""}
    yield finish, json.dumps({"session": "a.b.c.d.e", "proof": "0" * 64, **quoted}).encode()
    yield ak, _MACHINE.ak_public
    yield ek, _MACHINE.ek_public
    for vector in quotes():
        if (area := public_area(vector["public"])) is not None:
            yield ak, area
            yield ek, area
    columns = "name,ek_sha256,ek_certificate,policy,labels,without_token"
    yield ek_list, f"{columns}\r\nweb-1,{'ab' * 32},,web,canary site=berlin,yes\r\n".encode()
    yield ek_list, f'{columns}\n"web-1",,MIIB,,,\n'.encode()
    for pem in certificates():
        yield roots, pem
        der = parse_roots(pem)[0].der
        yield certificate, der + b"\xff" * 8  # an NV index is longer than what is in it
        for around in (
            b"\x10\x01\x00",
            b"",
            b"\x00\x00",
        ):  # a TPM 1.2's header, a length of two or four octets
            yield certificate, around + len(der).to_bytes(2) + der
        yield certificate, pem
        yield intermediate, der


TARGET = Target([body, finish, ak, ek, certificate, intermediate, roots, ek_list], seeds)
