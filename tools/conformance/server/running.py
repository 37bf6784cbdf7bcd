"""Duties of sections 9 and 10: announcements of the next boot, and rounds of a running machine."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from ..primitives.encoding import b64u
from ..primitives.texts import CAP_HEADER, announce_data, unlock_data, verify_data
from ..report import Group, NotTestedError, collect, expect
from ..tpm.machine import CAP_PCR
from ..tpm.structures import split_selection
from .client import Device, Tested, refused

DUTIES: Group[Tested] = []

_UNKNOWN: Final = "A" * 43


def _next_values(device: Device, event: bytes) -> bytes:
    """Return the values of a boot in which the first PCR is another one, and the cap zero."""
    bank, numbers = split_selection(device.selection)
    values = dict(device.machine.pcrs[bank])
    values[numbers[0]] = hashlib.new(bank, event).digest()
    values[CAP_PCR] = bytes(len(values[CAP_PCR]))
    return b"".join(values[number] for number in numbers)


def _announce(device: Device, values: bytes, label: str, **changes: Any) -> Any:
    challenge = device.asked_to_announce()
    return device.post(
        f"/attest/announce/{device.kid}", device.announcement(challenge, values, label, **changes)
    )


@collect(DUTIES, "9", "a question is answered with a challenge, and an unknown kid with 404")
def _(world: Tested) -> None:
    challenge = world.device.asked_to_announce()
    expect(challenge["selection"] == world.device.selection, "the selection is another one")
    expect(challenge.get("cap_pcr") == world.device.enrolled["cap_pcr"], "cap_pcr is another one")
    expect("1.1" in challenge.get("versions", ()), "versions has no 1.1")
    refused(world.device.post(f"/attest/announce/{_UNKNOWN}", {}), 404, "key-unknown")


@collect(DUTIES, "9", "an announcement is bound to its values and its label")
def _(world: Tested) -> None:
    device = world.device
    values, other = _next_values(device, b"next"), _next_values(device, b"other")
    challenge = device.asked_to_announce()
    nonce = challenge["nonce"]
    for binding in (
        announce_data(nonce, device.kid, other, "kernel"),
        announce_data(nonce, device.kid, values, "another label"),
        announce_data(nonce, _UNKNOWN, values, "kernel"),
        verify_data(nonce, device.kid),
    ):
        body = device.announcement(challenge, values, "kernel", binding=binding)
        refused(device.post(f"/attest/announce/{device.kid}", body), 403, "qualifying-data-mismatch")


@collect(
    DUTIES,
    "9",
    "values of which the cap is not zero, of another length or all zero, and bad labels are refused",
)
def _(world: Tested) -> None:
    device = world.device
    good = _next_values(device, b"next")
    if device.has_cap:
        size = len(good) // len(split_selection(device.selection)[1])
        at = split_selection(device.selection)[1].index(CAP_PCR) * size
        capped = good[:at] + b"\1" * size + good[at + size :]
        refused(_announce(device, capped, "capped"), 400, "values-invalid")
    refused(_announce(device, good[:-1], "short"), 400, "evidence-malformed")
    refused(_announce(device, bytes(len(good)), "zeros"), 400, "values-all-zero")
    for label in ("", " a", "a" * 65, "a\nb"):
        refused(_announce(device, good, label), 400, "request-malformed")


@collect(DUTIES, "9", "a machine that runs nothing approved announces nothing")
def _(world: Tested) -> None:
    device = world.device
    first = split_selection(device.selection)[1][0]
    device.machine.boot(**{f"pcr{first}": b"not approved"})
    answer = _announce(device, _next_values(device, b"next"), "kernel")
    device.machine.boot()
    device.opens("the approved boot")
    refused(answer, 403, "pcr-mismatch")


@collect(DUTIES, "9", "announced values wait for approval: the boot that has them gets no Y")
def _(world: Tested) -> None:
    device = world.device
    values = _next_values(device, b"next")
    answer = _announce(device, values, "conformance kit")
    if answer.status == 201 and answer.json["state"] == "staged":
        raise NotTestedError("this policy trusts predictions")
    expect(answer.status == 201, f"the announcement is answered with {answer.named}")
    expect(
        answer.json == {"label": "conformance kit", "state": "proposed", "known": False},
        f"it is {answer.json}",
    )
    again = _announce(device, values, "conformance kit again")
    expect(
        (again.status, again.json.get("known")) == (200, True),
        f"the same values are answered with {again.named}",
    )
    draft = device.draft(device.challenge())
    draft.values = values
    refused(device.send(draft), 403, "state-proposed")


def _end(device: Device, challenge: dict[str, Any], **changes: Any) -> Any:
    return device.post(f"/attest/agent/{device.kid}/evidence", device.round(challenge, **changes))


def _verdict(answer: Any, outcome: str, code: str) -> None:
    expect(answer.status == 200, f"it is answered with {answer.named} in place of a verdict")
    found = (answer.json.get("outcome"), answer.json.get("code"))
    expect(found == (outcome, code), f"the verdict is {' '.join(map(str, found))}")


@collect(DUTIES, "10.1", "without a ticket a challenge comes at once, and an unknown kid is 404")
def _(world: Tested) -> None:
    challenge = world.device.asked_for_a_round()
    expect("quote" in challenge["evidence"], "evidence has no word 'quote'")
    expect("1.1" in challenge.get("versions", ()), "versions has no 1.1")
    refused(world.device.post(f"/attest/agent/{_UNKNOWN}", {}), 404, "key-unknown")


@collect(DUTIES, "10.3", "a running, capped machine is verified, and one that is not capped is not")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.asked_for_a_round()
    if CAP_PCR in split_selection(challenge["selection"])[1]:
        _verdict(_end(device, challenge), "refused", "pcr-mismatch")
        device.machine.extend(CAP_PCR, CAP_HEADER)
        challenge = device.asked_for_a_round()
    answer = _end(device, challenge)
    _verdict(answer, "verified", "ok")
    expect(answer.json.get("ticket"), "the verdict has no ticket")


@collect(DUTIES, "10.2", "evidence without our TPM's signature over this round is no verdict")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.asked_for_a_round()
    nonce = challenge["nonce"]
    for binding in (
        unlock_data(nonce, device.kid, _UNKNOWN),
        verify_data(nonce, _UNKNOWN),
        verify_data("N" * 32, device.kid),
    ):
        refused(_end(device, challenge, binding=binding), 403, "qualifying-data-mismatch")
    refused(_end(device, challenge, signature=b64u(b"\0\x18\0\x0b\0\1\1\0\1\1")), 403, "signature-invalid")
    values = device.machine.values(challenge["selection"])
    refused(
        _end(device, challenge, pcrs=b64u(values[:-1] + bytes([values[-1] ^ 1]))), 403, "pcr-digest-mismatch"
    )


@collect(DUTIES, "10.2", "the same quote counts once, and another quote over the nonce counts again")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.asked_for_a_round()
    body = device.round(challenge)
    path = f"/attest/agent/{device.kid}/evidence"
    first = device.post(path, body)
    expect(first.status == 200, f"the first is answered with {first.named}")
    refused(device.post(path, body), 403, "nonce-used")
    again = _end(device, challenge)
    expect(again.status == 200, f"another quote is answered with {again.named}")


@collect(DUTIES, "10.2", "values that are not approved are a verdict")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.asked_for_a_round()
    first = split_selection(challenge["selection"])[1][0]
    device.machine.extend(first, b"not approved")
    _verdict(_end(device, challenge), "refused", "pcr-mismatch")
    device.machine.boot()
    device.opens("the next boot")
