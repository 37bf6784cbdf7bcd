"""Evidence of an unlock, and the TPM structures in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from tang_attest.errors import Refused
from tang_attest.protocol import tpm
from tang_attest.protocol.challenge import Mark, Purpose, check_nonce, make_nonce, read_mark
from tang_attest.protocol.checkquote.tools_files import public_area
from tang_attest.protocol.quote import check_binding, check_is_quote, check_pcr_digest, check_selection
from tang_attest.protocol.values.pcr import PCR_COUNT, Selection
from tang_attest.web.wire import AnnounceBody, AttestMember, ProveBody, parse_json, validate
from tests.fuzz.target import Parser, Target
from tests.fuzz.vectors import quotes

SELECTION = Selection.parse("sha256:0,2,4,7,8,9,15")


def body(data: bytes) -> None:
    """An unlock request; a client sees the member's own code."""
    members = parse_json(data)
    assert isinstance(members, dict)
    assert members == json.loads(data, object_pairs_hook=_once)
    validate(AttestMember, members.get("attest"), "evidence-malformed").evidence()


def announcement(data: bytes) -> None:
    """Announcement of a machine's next boot."""
    announced = validate(AnnounceBody, parse_json(data))
    announced.evidence()
    SELECTION.split(announced.announcement().values)


def proof(data: bytes) -> None:
    """Evidence of a running machine."""
    evidence = validate(ProveBody, parse_json(data)).evidence()
    assert evidence.ima_offset >= 0


def quote(data: bytes) -> None:
    """TPMS_ATTEST: whatever it is, what the checks look at is there."""
    attest = tpm.parse_attest(data)
    assert all(0 <= pcr < 4 * 8 for _, pcrs in attest.banks for pcr in pcrs)
    assert attest.is_quote or not (attest.banks or attest.pcr_digest)
    check_is_quote(attest)
    check_binding(attest, attest.extra_data)
    check_selection(attest, SELECTION)
    check_pcr_digest(attest, SELECTION, dict.fromkeys(range(PCR_COUNT), bytes(32)), "sha256")


def signature(data: bytes) -> None:
    """TPMT_SIGNATURE, against keys of each kind."""
    read = tpm.parse_signature(data)
    for key in _KEYS:
        if (key.scheme, key.hash_name) == (read.scheme, read.hash_name):
            tpm.verify_signature(key, read, b"a message that nobody signed")
            raise AssertionError("a signature over nothing holds")


def nonce(data: bytes) -> None:
    """A nonce that comes back: refused unless it is one of the seeds, whose mark is the one it was made with."""
    text = data.decode("latin-1")
    try:
        check_nonce(_NONCE_KEY, Purpose.UNLOCK, "kid", 1000, 120, text)
    except Refused:
        assert text not in _NONCES, "a nonce of ours was refused"
        raise
    assert read_mark(_NONCE_KEY, text) == _NONCES[text], "a nonce that nobody made is good"


def values(data: bytes) -> None:
    """PCR values, and back."""
    assert b"".join(SELECTION.split(data).values()) == data


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len(dict(pairs)) == len(pairs), "a member that is there twice was let through"
    return dict(pairs)


def _keys() -> Iterator[tpm.AttestationKey]:
    for vector in quotes():
        if (public := vector.get("public", b"")) and (area := public_area(public)) is not None:
            with contextlib.suppress(Refused):
                yield tpm.parse_ak(area)


_NONCE_KEY = b"k" * 32
_MARKS = (None, Mark(None), Mark(tpm.ClockInfo(2**64 - 1, 2**32 - 1, 7, safe=True)))
_NONCES = {make_nonce(_NONCE_KEY, Purpose.UNLOCK, "kid", 1000, bytes(16), mark): mark for mark in _MARKS}
_KEYS = list({key.spki: key for key in _keys()}.values())


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Real quotes, and bodies around one."""
    attest: dict[str, object] = {"nonce": "A" * 76, "quote": "_1RDRw", "signature": "ABgACw", "pcrs": "AAAA"}
    yield body, json.dumps({"kty": "EC", "alg": "ECMR", "crv": "P-521", "attest": attest}).encode()
    yield announcement, json.dumps({**attest, "label": "6.1", "values": "AA", "changes": ["kernel"]}).encode()
    yield proof, json.dumps({**attest, "ima": "AAAA", "ima_offset": 7, "event_log": "AA"}).encode()
    for text in _NONCES:
        yield nonce, text.encode()
    yield values, bytes(32 * len(SELECTION.pcrs))
    for vector in quotes():
        yield quote, vector["message"]
        yield signature, vector["signature"]


TARGET = Target([body, announcement, proof, quote, signature, values, nonce], seeds)
