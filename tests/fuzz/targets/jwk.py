"""Points and keys as JWKs: from machines, from an operator's file, in a Tang key directory; and tangd's requests."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.keys.jwk import dump_private, generate, load_private
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.points import parse_point
from tang_attest.service.tang.plain import TangStatus
from tang_attest.web.wire import parse_json
from tests.fuzz.target import Parser, Target

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
_DIRECTORY = Path(tempfile.mkdtemp(prefix="tang-attest-fuzz-"))
_KEYS = {alg: generate(alg) for alg in ("ES256", "ES384", "ES512", "ECMR")}
(_DIRECTORY / "sign.jwk").write_text(json.dumps(_KEYS["ES512"]))
(_DIRECTORY / "exchange.jwk").write_text(json.dumps(_KEYS["ECMR"]))
_TANG = TangDirectory(_DIRECTORY).current()
_KID = thumbprint(_KEYS["ECMR"])


def point(data: bytes) -> None:
    """A point that is read is on its curve, as OpenSSL says too, and written it is read as the same."""
    read = parse_point(parse_json(data))
    ec.EllipticCurvePublicNumbers(read.x, read.y, read.curve.implementation).public_key()
    assert parse_point(read.members()) == read
    assert len(thumbprint(read.members())) == 43


def private(data: bytes) -> None:
    """A key that is read is the one that is written."""
    jwk = parse_json(data)
    key = load_private(jwk)
    again = dump_private(key, "ECMR")
    assert load_private(again).private_numbers() == key.private_numbers()
    assert parse_point(again) == parse_point(jwk)


def directory(data: bytes) -> None:
    """Any file among a Tang directory's keys: the directory's own pair still answers."""
    (_DIRECTORY / "strange.jwk").write_bytes(data)
    current = TangDirectory(_DIRECTORY).current()
    assert current.find(_KID) is not None
    current.advertisement()


def request(data: bytes) -> None:
    """A request to plain Tang: a status that tangd knows, or a point on the curve."""
    reply: dict[str, Any] = json.loads(_TANG.recover(_KID, data))
    parse_point(reply)


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Keys of each kind."""
    for jwk in _KEYS.values():
        public = {name: value for name, value in jwk.items() if name != "d"}
        yield point, json.dumps(public).encode()
        yield private, json.dumps(jwk).encode()
        yield directory, json.dumps(jwk).encode()
        yield request, json.dumps({**public, "alg": "ECMR", "key_ops": ["deriveKey"]}).encode()


TARGET = Target([point, private, directory, request], seeds, max_length=2048, raises=(TangStatus,))
