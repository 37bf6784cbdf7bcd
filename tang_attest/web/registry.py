"""Codes of the protocol: the routes and steps of docs/protocol.md at which each is answered, and its audience.

Each code has one status, whichever class of error carries it.  docs/protocol.md, 15.1 is made from this table, and
the tests compare every answer of a test server with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Audience(StrEnum):
    """Proof that a client gave before it hears a code."""

    ANYBODY = "anybody"
    TOKEN = "the token"  # noqa: S105 - no password, but words of a table
    SESSION = "the session"
    TPM = "the TPM"


@dataclass(frozen=True, slots=True)
class WireCode:
    """One code: its status, ``route: step`` of each place that answers it, and its audience.

    A round answers a code of ``verdicts`` with 200, as the ``code`` of a verdict.
    """

    code: str
    status: int
    steps: dict[str, str]
    heard_by: Audience
    verdict: bool = False


#: Routes, as the registry names them.
ROUTES: Final = {
    "rec": "POST /rec/{kid}",
    "enroll": "POST /attest/enroll",
    "selection": "POST /attest/enroll/selection",
    "finish": "POST /attest/enroll/finish",
    "adv": "GET /attest/adv/{kid}",
    "announce": "POST /attest/announce/{kid}",
    "agent": "POST /attest/agent/{kid}",
    "evidence": "POST /attest/agent/{kid}/evidence",
}


def _at(step: str, *routes: str) -> dict[str, str]:
    return dict.fromkeys(routes, step)


_ANY: Final = tuple(ROUTES)
_POSTS: Final = tuple(route for route in ROUTES if route != "adv")
_BELOW: Final = tuple(route for route in ROUTES if route != "rec")
_KID: Final = ("rec", "adv", "announce", "agent", "evidence")
_QUOTED: Final = ("rec", "announce", "evidence")


def _evidence(step: str) -> dict[str, str]:
    return {**_at(step, *_QUOTED), "finish": "7"}


_JUDGED: Final = ("rec", "evidence")

CODES: Final = (
    # --- the request itself ---
    WireCode("too-many-requests", 429, _at("0", *_ANY), Audience.ANYBODY),
    WireCode("unavailable", 503, _at("0", *_ANY), Audience.ANYBODY),
    WireCode("encoding-unsupported", 415, _at("0", *_ANY), Audience.ANYBODY),
    WireCode("not-found", 404, _at("0", *_BELOW), Audience.ANYBODY),
    WireCode("method-not-allowed", 405, _at("0", *_BELOW), Audience.ANYBODY),
    WireCode("request-too-large", 413, _at("0", *_POSTS), Audience.ANYBODY),
    WireCode("request-slow", 408, _at("0", *_POSTS), Audience.ANYBODY),
    WireCode("internal", 500, _at("any", *_ANY), Audience.ANYBODY),
    WireCode("registry-tampered", 503, _at("any", *_ANY), Audience.ANYBODY),
    WireCode("key-unknown", 404, _at("1", *_KID), Audience.ANYBODY),
    WireCode(
        "request-malformed",
        400,
        {**_at("1", "rec", "announce", "agent", "evidence"), **_at("1, 2", "enroll", "selection", "finish")},
        Audience.ANYBODY,
    ),
    WireCode(
        "extension-unsupported",
        400,
        {**_at("1", "rec", "announce", "agent", "evidence"), **_at("2", "enroll", "selection", "finish")},
        Audience.ANYBODY,
    ),
    WireCode("evidence-required", 401, {"rec": "1"}, Audience.ANYBODY),
    WireCode(
        "evidence-malformed",
        400,
        {
            "rec": "1, 4, 5, 8",
            "announce": "4, 5, 8, 12",
            "evidence": "4, 5, 8",
            "enroll": "4",
            "finish": "7",
        },
        Audience.ANYBODY,
    ),
    WireCode("point-invalid", 400, {"rec": "1, 2"}, Audience.ANYBODY),
    WireCode("curve-mismatch", 400, {"rec": "2"}, Audience.ANYBODY),
    # --- evidence ---
    WireCode(
        "nonce-invalid", 403, {**_at("3", *_QUOTED), **_at("4", "selection", "finish")}, Audience.ANYBODY
    ),
    WireCode(
        "nonce-expired", 401, {**_at("3", *_QUOTED), **_at("4", "selection", "finish")}, Audience.ANYBODY
    ),
    WireCode("evidence-unsupported", 400, _evidence("4"), Audience.ANYBODY),
    WireCode("signature-invalid", 403, _evidence("4"), Audience.ANYBODY),
    WireCode("quote-invalid", 403, _evidence("5"), Audience.TPM),
    WireCode("qualifying-data-mismatch", 403, _evidence("6"), Audience.TPM),
    WireCode("selection-mismatch", 403, _evidence("7"), Audience.TPM, verdict=True),
    WireCode("pcr-digest-mismatch", 403, _evidence("8"), Audience.TPM),
    WireCode("reset-count-backwards", 403, _at("9", *_QUOTED), Audience.TPM, verdict=True),
    WireCode("clock-backwards", 403, _at("9, 10", *_QUOTED), Audience.TPM, verdict=True),
    WireCode("nonce-used", 403, _at("10", *_QUOTED), Audience.TPM),
    # --- the policy ---
    WireCode("device-suspended", 403, _at("12", "rec", "announce"), Audience.TPM),
    WireCode("key-retired", 403, _at("12", "rec"), Audience.TPM),
    WireCode("policy-empty", 403, _at("12", *_JUDGED), Audience.TPM, verdict=True),
    WireCode("pcr-mismatch", 403, _at("12", *_QUOTED), Audience.TPM, verdict=True),
    WireCode("capped", 403, _at("12", "rec"), Audience.TPM),
    WireCode("tpm-not-reset", 403, _at("12", "rec"), Audience.TPM),
    *(
        WireCode(f"state-{word}", 403, _at("12", *_JUDGED), Audience.TPM, verdict=True)
        for word in ("proposed", "expired", "used-up", "retired", "not-rolled-out")
    ),
    *(
        WireCode(f"statement-{word}", 403, _at("12", *_JUDGED), Audience.TPM, verdict=True)
        for word in (
            *("malformed", "untrusted", "out-of-scope", "elsewhere", "mismatch"),
            *("early", "expired", "retired", "rolled-back"),
        )
    ),
    WireCode("state-learned", 403, _at("12", "rec"), Audience.TPM),
    WireCode("uncovered", 403, {"rec": "12", "finish": "8"}, Audience.TPM),
    *(
        WireCode(code, 403, _at("12", *_JUDGED), Audience.TPM)
        for code in ("log-missing", "log-replay-mismatch", "eventlog-malformed", "eventlog-bank-missing")
    ),
    WireCode("rule-failed", 403, _at("12", *_JUDGED), Audience.TPM, verdict=True),
    WireCode("approval-required", 403, _at("12", "rec"), Audience.TPM),
    WireCode("device-stale", 403, _at("12", "rec"), Audience.TPM),
    # --- announcements ---
    WireCode("values-invalid", 400, {"announce": "12"}, Audience.TPM),
    WireCode("values-all-zero", 400, {"announce": "12", "finish": "8"}, Audience.TPM),
    WireCode("announcements-full", 403, {"announce": "12"}, Audience.TPM),
    # --- rounds ---
    *(
        WireCode(code, 403, {"evidence": "12"}, Audience.TPM)
        for code in ("ima-missing", "ima-incomplete", "ima-mismatch")
    ),
    WireCode("ima-malformed", 400, {"evidence": "12"}, Audience.TPM),
    WireCode("ima-not-allowed", 200, {"evidence": "12"}, Audience.TPM, verdict=True),
    WireCode("cap-missing", 200, {"evidence": "12"}, Audience.TPM, verdict=True),
    WireCode("root-not-attested", 200, {"evidence": "12"}, Audience.TPM, verdict=True),
    WireCode("root-not-told", 200, {"evidence": "12"}, Audience.TPM, verdict=True),
    # --- enrollment ---
    WireCode("token-invalid", 403, {"enroll": "1, 3", **_at("3", "selection", "finish")}, Audience.ANYBODY),
    *(
        WireCode(code, 403, {**_at("3", "enroll", "selection"), "finish": "3, 9"}, Audience.TOKEN)
        for code in ("token-used", "token-used-up", "token-revoked")
    ),
    WireCode("token-expired", 403, _at("3", "enroll", "selection", "finish"), Audience.TOKEN),
    # An enrollment by a registered EK needs no token.
    WireCode("ak-unsuitable", 403, {"enroll": "4"}, Audience.ANYBODY),
    WireCode("ek-malformed", 400, {"enroll": "5, 6"}, Audience.ANYBODY),
    WireCode("ek-unsupported", 403, {"enroll": "5, 6"}, Audience.ANYBODY),
    WireCode("ek-not-registered", 403, {"enroll": "5", "finish": "3, 9"}, Audience.ANYBODY),
    *(
        WireCode(code, 403, {"enroll": "6"}, Audience.TOKEN)
        for code in ("ek-untrusted", "ek-mismatch", "ek-expired")
    ),
    WireCode("session-invalid", 403, _at("1", "selection", "finish"), Audience.ANYBODY),
    WireCode(
        "selection-invalid", 403, {"selection": "5", **_at("12", "agent", "evidence")}, Audience.SESSION
    ),
    WireCode("activation-failed", 403, {"finish": "6"}, Audience.SESSION),
    WireCode("name-taken", 409, {"finish": "9"}, Audience.TPM),
    WireCode("device-exists", 409, {"finish": "9"}, Audience.TPM),
    # --- the server's TPM ---
    WireCode("server-tpm-unavailable", 503, {"rec": "12", "finish": "9"}, Audience.TPM),
    WireCode("server-tpm-foreign", 503, {"rec": "12", "finish": "9"}, Audience.TPM),
)
BY_CODE: Final = {each.code: each for each in CODES}
