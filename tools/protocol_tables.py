"""The tables of docs/protocol.md that are made from the program: limits, and the registry of codes.

tools/generate_docs.py writes them between their markers; tests/docs/test_protocol.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tang_attest.protocol import tpm
from tang_attest.protocol.cap import MAX_TEXT, MAX_TEXTS
from tang_attest.protocol.challenge import CLOCK_SKEW_MS
from tang_attest.protocol.enrollment import SECRET_SIZE
from tang_attest.protocol.reference_state import MAX_LABEL
from tang_attest.protocol.signed_values.examine import MAX_STATEMENTS, MAX_TOTAL
from tang_attest.protocol.signed_values.pcrsig import MAX_ENTRIES, MAX_PCRSIG
from tang_attest.protocol.signed_values.statement import MAX_POLICIES, MAX_STATEMENT
from tang_attest.protocol.values.pcr import PCR_COUNT
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG, MAX_IMA_PART, MAX_PCRS
from tang_attest.service.enrollment.enroll import ANSWERED_AGAIN_FOR
from tang_attest.service.policies.announce import MAX_ANNOUNCED
from tang_attest.service.rounds.agents import HOLD_S, TICKET_S
from tang_attest.service.rounds.polls import PER_KEY
from tang_attest.service.tang.plain import BODY_LIMIT
from tang_attest.web import wire
from tang_attest.web.gate.bodies import MAX_APPLICATION, MAX_BODY, SMALL_BODY
from tang_attest.web.registry import CODES, ROUTES, WireCode
from tang_attest.web.tang_routes import TARGET_LIMIT

#: The largest answer that a client has to take, in bytes; clevis-attest-functions has it as ATTEST_MAX_REPLY.
MAX_REPLY: Final = 128 * 1024

_ROWS: Final = (
    ("a request's body", MAX_BODY, "bytes", "`request-too-large`"),
    ("the body of 4.1", MAX_APPLICATION, "bytes", "`request-too-large`"),
    ("a body whose `kid` may be looked up after it was read", SMALL_BODY, "bytes", ""),
    ("the body of a plain Tang request", BODY_LIMIT, "bytes", "empty 413"),
    ("a request's target on Tang's routes", TARGET_LIMIT, "bytes", "empty 414"),
    ("an answer", MAX_REPLY, "bytes", "the client goes on"),
    ("nesting of a request's JSON", wire.BOUNDS.depth, "levels", "`request-malformed`"),
    ("its members and elements in all", wire.BOUNDS.parts, "", "`request-malformed`"),
    ("its backslashes in all", wire.BOUNDS.escapes, "", "`request-malformed`"),
    ("a number in it", wire.MAX_NUMBER, "characters", "`request-malformed`"),
    ("`critical`", wire.MAX_CRITICAL, "names", "as a wrong type"),
    ("a name in it", wire.MAX_MEMBER, "characters", "as a wrong type"),
    ("`quote`, `signature`", tpm.MAX_STRUCTURE, "bytes", "as a wrong type"),
    ("`pcrs`, `values`", MAX_PCRS, "bytes", "as a wrong type"),
    ("`event_log`, and `event_log_limit`", MAX_EVENT_LOG, "bytes", "as a wrong type"),
    ("`event_log_size`, `ima_offset`", wire.MAX_SIZE, "", "as a wrong type"),
    ("`ima`", MAX_IMA_PART, "bytes", "as a wrong type"),
    ("`signed_values.pcrsig`, as compact JSON", MAX_PCRSIG, "bytes", "as if it were not there"),
    ("its entries, in all banks", MAX_ENTRIES, "", "as if it were not there"),
    ("one of `signed_values.statements`", MAX_STATEMENT, "characters", "as if it were not there"),
    ("`signed_values.statements`", MAX_STATEMENTS, "statements", "as if they were not there"),
    ("all of them together", MAX_TOTAL, "characters", "as if they were not there"),
    ("`policies` of a statement", MAX_POLICIES, "names", "as if it were not there"),
    ("`cap_events`", MAX_TEXTS, "bytes", "as a wrong type"),
    ("one cap-text", MAX_TEXT, "bytes", "*not told*"),
    ("`nonce`, `ticket`", wire.MAX_NONCE, "characters", "as a wrong type"),
    ("`token`", wire.MAX_TOKEN, "characters", "as a wrong type"),
    ("`ak`, `ek`", tpm.MAX_STRUCTURE, "bytes", "as a wrong type"),
    ("`ek_certificate`", wire.MAX_CERTIFICATE, "bytes", "as a wrong type"),
    ("`session`", wire.MAX_SESSION, "characters", "as a wrong type"),
    ("the secret of an activation", SECRET_SIZE, "bytes", ""),
    ("`label`", MAX_LABEL, "characters", "`request-malformed`"),
    ("`changes`", wire.MAX_CHANGES, "sentences", "as a wrong type"),
    ("a sentence in it", wire.MAX_CHANGE, "characters", "as a wrong type"),
    ("announced states of a policy that no machine booted", MAX_ANNOUNCED, "", "`announcements-full`"),
    ("a PCR's number", PCR_COUNT - 1, "", "`selection-mismatch`"),
    ("the time for which a request is held", int(HOLD_S), "seconds", "204"),
    ("requests of one `kid` that are held", PER_KEY, "", "the oldest is answered"),
    ("the life of a ticket", TICKET_S, "seconds", "answered at once"),
    ("the clock of a replica that is ahead", CLOCK_SKEW_MS // 1000, "seconds", "`nonce-invalid`"),
    (
        "the time in which a lost 201 is answered again",
        int(ANSWERED_AGAIN_FOR.total_seconds()),
        "seconds",
        "`token-used`",
    ),
)


def limits() -> str:
    """The table of limits."""
    rows = "".join(f"| {what} | {limit} | {unit} | {code} |\n" for what, limit, unit, code in _ROWS)
    return f"| limit on | at most | unit | beyond it |\n|---|---|---|---|\n{rows}"


def codes() -> str:
    """The registry of codes, after the table of routes."""
    routes = "".join(f"| `{name}` | `{route}` |\n" for name, route in ROUTES.items())
    rows = "".join(_row(each) for each in CODES)
    return (
        f"| route | request |\n|---|---|\n{routes}\n"
        f"| code | status | route: step | hears it |\n|---|---|---|---|\n{rows}"
    )


def _row(each: WireCode) -> str:
    status = str(each.status)
    if each.verdict and each.status != 200:
        status += "; 200 as a verdict"
    elif each.verdict:
        status = "200 as a verdict"
    by_step: dict[str, list[str]] = {}
    for route, step in each.steps.items():
        by_step.setdefault(step, []).append(f"`{route}`")
    places = "; ".join(
        f"{'all' if len(routes) == len(ROUTES) else ' '.join(routes)}: {step}"
        for step, routes in by_step.items()
    )
    return f"| `{each.code}` | {status} | {places} | {each.heard_by} |\n"


BLOCKS: Final[Mapping[str, Callable[[], str]]] = {"limits": limits, "codes": codes}


def filled(document: str) -> str:
    """*document* with every block as the program makes it.  Raises :class:`LookupError` for one that is not there."""
    for name, make in BLOCKS.items():
        begin, end = _markers(name)
        before, found, rest = document.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise LookupError(name)
        document = f"{before}{begin}\n{make()}{end}{after}"
    return document


def _markers(name: str) -> Iterator[str]:
    yield f"<!-- {name}: begin (python -m tools.generate_docs) -->"
    yield f"<!-- {name}: end -->"
