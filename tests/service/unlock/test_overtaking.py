"""Evidence that arrives in another order than it was made in (docs/protocol.md, 3.3, steps 9 and 10).

Two quotes of one boot may overtake each other: two disks are opened at once, or one of two servers is slow.  A TPM that
was set back, an earlier boot, and the same evidence again are something else, in whatever order they come.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tang_attest.protocol.challenge import verify_digest
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.reference_state import reference_state
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import RoundOutcome
from tests.attester import Attester, members
from tests.server import Answer, Server, announcement, evidence, new_x
from tests.store.samples import entry

#: Without the cap PCR, so that one machine can unlock, announce and be verified.
SELECTION = "sha256:0,4,7"

Send = Callable[[], Awaitable[Answer]]


async def enroll(server: Server, attester: Attester) -> str:
    """A machine that a policy approves, and suspends when it runs something else."""
    kid = await server.enroll(attester, selection=Selection.parse(SELECTION), learn_for=timedelta(0))
    await server.conditions.set("pi-b", Conditions(watch=Watch(on_refused=("suspend",))))
    return kid


async def unlock(server: Server, kid: str) -> Callable[[Attester], Send]:
    """Ask; then quote; then send."""
    x, challenge = dict(members(new_x())), await server.challenge(kid)

    def quote(attester: Attester) -> Send:
        body = x | {"attest": evidence(attester, kid, x, challenge)}
        return lambda: server.post(f"/rec/{kid}", body)

    return quote


async def announce(server: Server, kid: str) -> Callable[[Attester], Send]:
    """The same, for the values of a next boot."""
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    values = random.randbytes(32 * 3)

    def quote(attester: Attester) -> Send:
        body = announcement(attester, kid, challenge, values, values.hex()[:8])
        return lambda: server.post(f"/attest/announce/{kid}", body)

    return quote


async def verify(server: Server, kid: str) -> Callable[[Attester], Send]:
    """The same, for a round of verification."""
    challenge = (await server.post(f"/attest/agent/{kid}", {})).body["challenge"]

    def quote(attester: Attester) -> Send:
        binding = verify_digest(challenge["nonce"], kid)
        body = attester.evidence(challenge["nonce"], binding, challenge["selection"])
        return lambda: server.post(f"/attest/agent/{kid}/evidence", body)

    return quote


KINDS = {"unlock": unlock, "announce": announce, "verify": verify}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
OTHER = pytest.mark.parametrize("other", KINDS.values(), ids=[f"and-{name}" for name in KINDS])


def good(answer: Answer) -> None:
    """Y, or kept, or verified."""
    assert answer.status in (200, 201), answer
    assert answer.body.get("outcome", "verified") == "verified"


async def in_good_standing(server: Server) -> None:
    """Nobody was told that anything is odd about the machine."""
    device = await server.store.devices.get_device("pi-b")
    assert device.suspension is None
    assert device.standing.outcome in (None, RoundOutcome.VERIFIED)
    told = {entry.code for _, entry in await server.store.audit.list_audit("pi-b")}
    assert not told & {"clock-backwards", "reset-count-backwards", "nonce-used"}


@KIND
@OTHER
@pytest.mark.parametrize("later_s", [0, 30, -4])
async def test_two_quotes_of_one_boot_overtake_each_other(
    server: Server, attester: Attester, kind: Any, other: Any, later_s: int
) -> None:
    """Both count, whatever they are for; a server's clock that runs ahead, stands or is set back changes nothing."""
    kid = await enroll(server, attester)
    first, second = await kind(server, kid), await other(server, kid)
    slow, fast = first(attester), second(attester)
    good(await fast())
    server.clock.advance(seconds=later_s)
    good(await slow())
    await in_good_standing(server)
    newest = (await server.store.devices.get_device("pi-b")).clock
    assert newest is not None
    assert newest.clock == attester.clock, "the TPM's clock was moved back"
    good(await (await kind(server, kid))(attester)())


async def test_any_order_of_many(server: Server, attester: Attester) -> None:
    """Twelve at once, the last one first."""
    kid = await enroll(server, attester)
    asked = [await kind(server, kid) for kind in (*KINDS.values(),) * 4]
    for send in [quote(attester) for quote in asked][::-1]:
        good(await send())
    await in_good_standing(server)


async def test_a_challenge_asked_between_them(server: Server, attester: Attester) -> None:
    """Evidence accepted before a nonce was made is older than its quote; later evidence need not be."""
    kid = await enroll(server, attester)
    first, second = await unlock(server, kid), await unlock(server, kid)
    slow, fast = first(attester), second(attester)
    good(await fast())
    third = await unlock(server, kid)
    good(await slow())
    good(await third(attester)())
    await in_good_standing(server)


async def test_counters_that_pass_through_zero(server: Server, attester: Attester) -> None:
    """A TPM adds a secret to what it signs, modulo 2^32: an overtaken quote has large counters, too."""
    attester.reset_count = attester.restart_count = 2**32 - 1
    kid = await enroll(server, attester)
    attester.reset_count = attester.restart_count = 0
    first, second = await unlock(server, kid), await unlock(server, kid)
    slow, fast = first(attester), second(attester)
    good(await fast())
    good(await slow())
    await in_good_standing(server)


@KIND
async def test_the_same_evidence_again_is_a_used_nonce(server: Server, attester: Attester, kind: Any) -> None:
    """At once, after newer evidence, and also when it was overtaken itself."""
    kid = await enroll(server, attester)
    slow, fast = [(await kind(server, kid))(attester) for _ in range(2)]
    for send in (fast, slow):
        good(await send())
        again = await send()
        assert (again.status, again.code) == (403, "nonce-used")
    good(await (await kind(server, kid))(attester)())
    for send in (slow, fast):
        assert (await send()).code == "nonce-used"


@KIND
async def test_the_same_evidence_again_after_the_policy_changed(
    server: Server, attester: Attester, kind: Any
) -> None:
    """A replay is a replay, whatever would be said of the evidence now."""
    kid = await enroll(server, attester)
    send = (await kind(server, kid))(attester)
    good(await send())
    recorded = (await server.store.policies.get_policy("pi-b")).states[0].label
    await server.reference_values.retire("pi-b", recorded, force=True)
    assert (await send()).code == "nonce-used"
    assert (await server.store.devices.get_device("pi-b")).suspension is None


@KIND
@pytest.mark.parametrize(
    ("back", "code"),
    [
        ({"clock": 500}, "clock-backwards"),
        ({"reset_count": 1}, "reset-count-backwards"),
        ({"restart_count": 1}, "reset-count-backwards"),
    ],
    ids=["clock", "reset", "restart"],
)
async def test_a_tpm_that_was_set_back_is_refused(
    server: Server, attester: Attester, kind: Any, back: dict[str, int], code: str
) -> None:
    """The nonce was made after the newer evidence was accepted, so nothing was overtaken."""
    attester.clock, attester.reset_count, attester.restart_count = 5000, 5, 5
    kid = await enroll(server, attester)
    good(await (await kind(server, kid))(attester)())
    for counter, by in back.items():
        setattr(attester, counter, getattr(attester, counter) - by)
    answer = await (await kind(server, kid))(attester)()
    assert answer.code == code
    assert answer.body.get("outcome", "refused") == "refused"


@KIND
@pytest.mark.parametrize("counter", ["reset_count", "restart_count"])
async def test_a_quote_of_an_earlier_boot_is_refused(
    server: Server, attester: Attester, kind: Any, counter: str
) -> None:
    """A quote held back until the machine booted again gets nothing; and the machine is not blamed for it."""
    kid = await enroll(server, attester)
    held = (await kind(server, kid))(attester)
    newer = await kind(server, kid)
    setattr(attester, counter, getattr(attester, counter) + 1)
    good(await newer(attester)())
    answer = await held()
    assert (answer.status, answer.code) == (403, "clock-backwards")
    device = await server.store.devices.get_device("pi-b")
    assert device.suspension is None
    assert device.clock is not None
    assert getattr(device.clock, counter) == getattr(attester, counter)


async def test_an_overtaken_round_does_not_make_a_refused_machine_good(
    server: Server, attester: Attester
) -> None:
    """Evidence from before an intrusion, held back until after it was seen, says nothing about now."""
    kid = await enroll(server, attester)
    await server.conditions.set("pi-b", Conditions())
    before = (await verify(server, kid))(attester)
    after = await verify(server, kid)
    attester.extend(4, b"another kernel")
    assert (await after(attester)()).body["outcome"] == "refused"
    assert (await before()).body["outcome"] == "verified"
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.REFUSED
    policy = await server.store.policies.get_policy("pi-b")
    values = policy.selection.split(attester.values(SELECTION))
    await server.store.policies.add_state(
        "pi-b", reference_state(policy.selection, "next", values, "imported", cap_pcr=15), entry()
    )
    good(await (await verify(server, kid))(attester)())
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED


async def test_an_overtaken_round_that_is_bad_counts(server: Server, attester: Attester) -> None:
    """Software that ran once in this boot ran in this boot."""
    kid = await enroll(server, attester)
    first, second = await verify(server, kid), await verify(server, kid)
    good_values = dict(attester.pcrs["sha256"])
    attester.extend(4, b"another kernel")
    bad = first(attester)
    attester.pcrs["sha256"] = good_values
    good(await second(attester)())
    assert (await bad()).body["outcome"] == "refused"
    assert (await server.store.devices.get_device("pi-b")).suspension is not None


async def test_a_stranger_learns_nothing_from_a_challenge(server: Server, attester: Attester) -> None:
    """A client that only knows a kid learns neither the number of boots nor the uptime."""
    attester.clock, attester.reset_count = 0x1122334455667700, 0x55AA55AA
    kid = await enroll(server, attester)
    good(await (await unlock(server, kid))(attester)())
    nonces = [unb64u((await server.challenge(kid))["nonce"]) for _ in range(2)]
    for nonce in nonces:
        assert attester.clock.to_bytes(8, "big") not in nonce
        assert attester.reset_count.to_bytes(4, "big") not in nonce
    same = [one == other for one, other in zip(*nonces, strict=True)]
    assert sum(same) < 20, "version and time are the same, the rest is not"


@KIND
async def test_evidence_is_overtaken_by_a_nonces_life_at_most(
    server: Server, attester: Attester, kind: Any
) -> None:
    """By the TPM's own clock: whoever sets the server's clock back and lost its used nonces shows nothing old again."""
    kid = await enroll(server, attester)
    slow, newer = (await kind(server, kid))(attester), await kind(server, kid)
    attester.clock += 250_000
    good(await newer(attester)())
    assert (await slow()).code == "clock-backwards"
    assert (await server.store.devices.get_device("pi-b")).suspension is None
