"""Duties of a client that unlocks: sections 2, 3, 6, 8 and 11."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ..primitives.curve import CURVES
from ..primitives.texts import CAP_HEADER, cap_replay, cap_texts
from ..report import Group, NotTestedError, ViolationError, collect, expect
from ..tpm.structures import ReadKey
from .exchange import PLAINTEXT, Disk, Verifier, off_curve, other_curve_point
from .played import Behavior, Played, Seen, answer, problem, reply

#: A sentence that must not reach a prompt.
_TRAP: Final = "TYPE-THE-PASSPHRASE-HERE"
#: Addresses of one attempt.
_ADDRESSES: Final = 4
#: Statements of one request, their characters, and those of each (section 14).
_STATEMENTS: Final = 8
_STATEMENTS_SIZE: Final = 49152
_STATEMENT_SIZE: Final = 16384


@dataclass
class Tested:
    """The client under test: *command* reads a JWE and writes the plaintext.

    *bind* is a shell command with places for {url}, {token}, {thp} and {name}, that reads a plaintext and writes a
    JWE.  *cap* is a shell command that does what the initrd does before it hands over, and *cap_events* the file in which
    it keeps its texts.
    """

    played: Played
    command: Sequence[str]
    ak: ReadKey
    handle: str
    timeout: float = 90
    _: KW_ONLY
    bind: str = ""
    cap: str = ""
    cap_events: str = ""
    caps_itself: bool = False
    trials: int = 0


@dataclass
class Outcome:
    """The end of one run of the client's command."""

    status: int
    stdout: bytes
    said: str
    seen: list[Seen] = field(default_factory=list)

    @property
    def opened(self) -> bool:
        """True if the client wrote the plaintext, and ended well."""
        return self.status == 0 and self.stdout == PLAINTEXT

    def asked(self) -> list[str]:
        """Return the addresses in the order in which they were asked first."""
        return list(dict.fromkeys(it.address for it in self.seen))


def run(world: Tested, command: Sequence[str], stdin: bytes, behaviors: dict[str, Behavior]) -> Outcome:
    """Run a command while the server behaves so."""
    world.played.behaviors = behaviors
    world.played.seen.clear()
    try:
        done = subprocess.run(
            list(command),
            input=stdin,
            capture_output=True,
            timeout=world.timeout,
            check=False,
            env=os.environ,
        )
    except subprocess.TimeoutExpired:
        return Outcome(-1, b"", f"no end within {world.timeout:.0f} s", list(world.played.seen))
    return Outcome(
        done.returncode, done.stdout, done.stderr.decode(errors="replace"), list(world.played.seen)
    )


def unlock(world: Tested, behaviors: dict[str, Behavior], disk: Disk, *, jwe: str = "") -> Outcome:
    """Run the client on a disk whose addresses are those of *behaviors*, in their order."""
    text = jwe or disk.jwe([f"{world.played.url}/{address}" for address in behaviors], world.handle)
    return run(world, world.command, text.encode(), behaviors)


def opens(world: Tested, verifier: Verifier) -> Outcome:
    """Expect the client to open the disk of *verifier* with good evidence."""
    outcome = unlock(world, {"good": verifier}, verifier.disk)
    expect(outcome.opened, f"it does not open: status {outcome.status}, {outcome.said.strip()[-200:]}")
    expect(not verifier.faults, "; ".join(verifier.faults))
    return outcome


DUTIES: Group[Tested] = []


@collect(DUTIES, "3", "it asks, quotes for the challenge with its AK, and opens with Y")
def _(world: Tested) -> None:
    opens(world, Verifier(Disk(), world.ak))


@collect(DUTIES, "2", "it opens disks on P-256, P-384 and P-521")
def _(world: Tested) -> None:
    for name in ("P-256", "P-384"):
        opens(world, Verifier(Disk(CURVES[name]), world.ak))


@collect(DUTIES, "8", "a coordinate of K that begins with zeros goes into the key with them")
def _(world: Tested) -> None:
    disk = Disk()
    while disk.k[0] >> 8 * (disk.curve.size - 1):
        disk = Disk(disk.curve, disk.s, disk.c + 1)
    opens(world, Verifier(disk, world.ak))


@collect(DUTIES, "2", "X is blinded anew each time: never C, and never twice")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    for _ in range(3):
        opens(world, verifier)
    asked, known = verifier.xs[::2], {verifier.disk.big_c, verifier.disk.big_s, verifier.disk.curve.generator}
    expect(not known & set(verifier.xs), "X is a point that others know")
    expect(len(set(asked)) == len(asked), "the same X came in two runs")


@collect(DUTIES, "3.2", "the second request has the X of the first, and neither has a private member")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    opens(world, verifier)
    expect(verifier.xs[0] == verifier.xs[1], "the second request has another X")
    for body in verifier.bodies:
        expect("d" not in body, "a private scalar was sent")
        expect(body.get("alg", "ECMR") == "ECMR", "alg is not ECMR")


@collect(DUTIES, "3.1", "it quotes the selection that it was asked for, all of it and nothing else")
def _(world: Tested) -> None:
    for selection in ("sha256:0", "sha256:7,15", "sha256:0,1,2,3,4,5,6,7,8,9,15"):
        opens(world, Verifier(Disk(), world.ak, selection=selection))


@collect(DUTIES, "12.2", "words and members that it does not know are ignored")
def _(world: Tested) -> None:
    more = {"evidence": ["quote", "future"], "future": {"a": [1]}, "versions": ["1.1", "1.7"]}
    verifier = Verifier(Disk(), world.ak, more=more)

    def with_more(seen: Seen) -> bytes:
        if "attest" not in seen.json:
            return verifier.ask(seen)
        verifier.prove(seen)
        return verifier.y(verifier.xs[-1], future=1)

    outcome = unlock(world, {"good": with_more}, verifier.disk)
    expect(outcome.opened, f"it does not open: {outcome.said.strip()[-200:]}")


@collect(DUTIES, "12.1", "a server of another version gets no evidence, and a person is told why")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak, more={"versions": ["2.0", "11.1"]})
    outcome = unlock(world, {"later": verifier}, verifier.disk)
    expect(not any(b'"attest"' in it.body for it in outcome.seen), "it got evidence")
    expect(outcome.status != 0 and not outcome.stdout, "it ended well")
    expect("version" in outcome.said, f"the reason is not told: {outcome.said.strip()[-200:]}")
    older = Verifier(Disk(), world.ak)
    outcome = unlock(world, {"1.0": lambda seen: _without_versions(older, seen)}, older.disk)
    expect(outcome.opened, f"a server without versions, of 1.0, opens nothing: {outcome.said.strip()[-200:]}")


@collect(
    DUTIES, "12.1", "signed values go to a server that knows them or ignores them, and not to one of 1.0"
)
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    opens(world, verifier)
    sent = verifier.bodies[-1]["attest"].get("signed_values")
    if sent is None:
        raise NotTestedError("the client sends no signed values; give it a statement or a .pcrsig")
    statements = sent.get("statements", [])
    expect(len(statements) <= _STATEMENTS, f"it sends {len(statements)} statements")
    expect(sum(map(len, statements)) <= _STATEMENTS_SIZE, "its statements are larger than all may be")
    expect(all(len(each) <= _STATEMENT_SIZE for each in statements), "a statement is larger than one may be")
    older = Verifier(Disk(), world.ak)
    outcome = unlock(world, {"1.0": lambda seen: _without_versions(older, seen)}, older.disk)
    expect(outcome.opened, f"a server of 1.0 opens nothing: {outcome.said.strip()[-200:]}")
    expect(not any(b"signed_values" in it.body for it in outcome.seen), "a server of 1.0 gets signed values")


def _without_versions(verifier: Verifier, seen: Seen) -> bytes:
    if "attest" in seen.json:
        return verifier.prove(seen)
    verifier.ask(seen)
    challenge = {
        "nonce": verifier.nonces[-1],
        "selection": verifier.selection,
        "expires_in": 120,
        "evidence": ["quote"],
    }
    return problem(401, "evidence-required", challenge=challenge)


def _odd_answers(verifier: Verifier) -> dict[str, Behavior]:
    """Return answers that are no answer of this protocol, or say to go on, by the name of their address."""
    curve = verifier.disk.curve

    def after_the_quote(made: bytes) -> Behavior:
        return lambda seen: made if "attest" in seen.json else verifier.ask(seen)

    wrong = curve.jwk(curve.multiply(12345), alg="ECMR", key_ops=["deriveKey"])
    kind = "application/jwk+json"
    page = b"<html>sign in</html>"
    return {
        "page-200": lambda _: reply(200, page, "text/html"),
        "redirect": lambda _: reply(302, b"", "text/html", Location=f"{_OWN}/redirected"),
        "page-401": lambda _: reply(401, page, "text/html"),
        "page-403": lambda _: reply(403, page, "text/html"),
        "plain-404": lambda _: reply(404, b"", "text/plain"),
        "json-403": lambda _: answer(
            403, {"code": "pcr-mismatch", "status": 403, "detail": "x", "action": "x"}
        ),
        "other-status": lambda _: problem(403, "pcr-mismatch", status=404),
        "other-type": lambda _: problem(403, "pcr-mismatch", type="about:blank"),
        "odd-code": lambda _: problem(403, "Sign in"),
        "no-detail": lambda _: problem(403, "pcr-mismatch", detail=None),
        "not-found": lambda _: problem(404, "not-found"),
        "method": lambda _: problem(405, "method-not-allowed"),
        "slow": lambda _: problem(408, "request-slow"),
        "busy": lambda _: problem(503, "unavailable"),
        "no-challenge": lambda _: problem(401, "evidence-required"),
        "nonce-with-space": lambda seen: verifier.ask(seen, nonce="a b" * 8),
        "nonce-too-short": lambda seen: verifier.ask(seen, nonce="abc"),
        "nonce-is-a-command": lambda seen: verifier.ask(seen, nonce="$(touch /tmp/owned)aaaaaaaa"),
        "selection-sha1": lambda seen: verifier.ask(seen, selection="sha1:0"),
        "selection-option": lambda seen: verifier.ask(seen, selection="sha256:0 -c 0x81010001"),
        "closed": lambda _: b"",
        "cut": lambda _: reply(401, b"x" * 200, "application/problem+json")[:-100],
        "too-large": lambda _: reply(401, b" " * 140_000 + b"{}", "application/problem+json"),
        "y-off-curve": after_the_quote(answer(200, off_curve(curve) | {"alg": "ECMR"}, kind)),
        "y-of-another-curve": after_the_quote(answer(200, other_curve_point(), kind)),
        "y-of-another-key": after_the_quote(answer(200, wrong, kind)),
        "y-without-coordinates": after_the_quote(answer(200, {"kty": "EC", "crv": curve.name}, kind)),
        "busy-after-the-quote": after_the_quote(problem(503, "unavailable")),
    }


_OWN: Final = "http://127.0.0.1:1"


@collect(DUTIES, "6", "it goes on to the next address after each answer that is none of this protocol")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    odd = _odd_answers(verifier)
    names_of_all = list(odd)
    # Few at a time: a client has a minute for all addresses of one attempt.
    for begin in range(0, len(odd), _ADDRESSES):
        part = {name: odd[name] for name in names_of_all[begin : begin + _ADDRESSES]}
        names = [*part, "good"]
        outcome = unlock(world, {**part, "good": verifier}, verifier.disk)
        asked = [address for address in outcome.asked() if address in names]
        expect(
            asked == names,
            f"after the answer '{asked[-1] if asked else 'none'}' it does not go on to the next address",
        )
        expect(outcome.opened, f"it does not open at the last one: {outcome.said.strip()[-200:]}")


@collect(DUTIES, "3.1", "a challenge that has not its grammar gets no evidence")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    odd = {
        name: it for name, it in _odd_answers(verifier).items() if name.startswith(("nonce-", "selection-"))
    }
    outcome = unlock(world, odd, verifier.disk)
    answered = [it.address for it in outcome.seen if b'"attest"' in it.body]
    expect(not answered, f"{', '.join(answered)} got evidence")
    expect(not Path("/tmp/owned").exists(), "a text of the server was run as a command")  # noqa: S108 - the trap
    expect(not outcome.stdout, "something was written")


@collect(DUTIES, "3.2", "it follows no redirection")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    target = f"{world.played.url}/elsewhere/rec/{verifier.disk.kid}"
    for status in (301, 302, 307, 308):
        moved = reply(status, b"", "text/html", Location=target)
        outcome = unlock(world, {"moved": lambda _, moved=moved: moved}, verifier.disk)  # type: ignore[misc]  # bound now
        expect("elsewhere" not in outcome.asked(), f"{status} was followed")
        expect(outcome.status != 0 and not outcome.stdout, "it ended well")


@collect(DUTIES, "6", "a refusal is final: no other address is asked, and nothing is written")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    for status, code in (
        (403, "pcr-mismatch"),
        (404, "key-unknown"),
        (400, "evidence-malformed"),
        (403, "a-code-of-later"),
    ):
        made = problem(status, code)
        outcome = unlock(world, {"refuses": lambda _, made=made: made, "good": verifier}, verifier.disk)  # type: ignore[misc]  # bound now
        expect("good" not in outcome.asked(), f"after {status} {code} the next address was asked")
        expect(outcome.status != 0 and not outcome.stdout, f"after {status} {code} it ended well")


@collect(DUTIES, "6", "text of an answer is not shown")
def _(world: Tested) -> None:
    disk = Disk()
    for code in ("pcr-mismatch", "type-it-now-please"):
        made = problem(403, code, detail=_TRAP, action=_TRAP, title=_TRAP)
        outcome = unlock(world, {"refuses": lambda _, made=made: made}, disk)  # type: ignore[misc]  # bound now
        expect(_TRAP not in outcome.said, "a person reads the server's sentence")
        expect("type-it-now-please" not in outcome.said, "a person reads the server's code")


@collect(DUTIES, "3.7", "an expired nonce gets a new quote, and no address more than two in one attempt")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    proofs: list[Any] = []

    def late(seen: Seen) -> bytes:
        if "attest" not in seen.json:
            return verifier.ask(seen)
        proofs.append(seen.json["attest"])
        if len(proofs) == 1:
            return problem(401, "nonce-expired", challenge=verifier.challenge())
        return verifier.prove(seen)

    outcome = unlock(world, {"late": late}, verifier.disk)
    expect(outcome.opened, f"it does not open with the second nonce: {outcome.said.strip()[-200:]}")
    expect(not verifier.faults, "; ".join(verifier.faults))
    expect(proofs[0]["quote"] != proofs[1]["quote"], "the second quote is the first")
    again: list[int] = []

    def always_late(seen: Seen) -> bytes:
        if "attest" not in seen.json:
            return verifier.ask(seen)
        again.append(1)
        return problem(401, "nonce-expired", challenge=verifier.challenge())

    outcome = unlock(world, {"late": always_late}, verifier.disk)
    expect(len(again) <= 2, f"{len(again)} challenges were answered")
    expect(outcome.status != 0 and not outcome.stdout, "it ended well")


@collect(DUTIES, "3.7", "Retry-After is honored")
def _(world: Tested) -> None:
    disk, pause = Disk(), 3
    busy = reply(
        429,
        json.dumps({"status": 429, "code": "too-many-requests", "detail": "x", "action": "x"}).encode(),
        "application/problem+json",
        Retry_After=str(pause),
    )
    outcome = unlock(world, {"busy": lambda _: busy}, disk)
    times = [it.at for it in outcome.seen]
    early = [later - before for before, later in pairwise(times) if later - before < pause - 0.1]
    expect(not early, f"it asked again after {min(early, default=0):.1f} s in place of {pause}")


@collect(DUTIES, "8", "a header that was changed opens nothing")
def _(world: Tested) -> None:
    verifier = Verifier(Disk(), world.ak)
    jwe = verifier.disk.jwe([f"{world.played.url}/good"], world.handle)
    parts = jwe.split(".")
    tag = parts[4]
    changed = ".".join([*parts[:4], ("B" if tag[0] == "A" else "A") + tag[1:]])
    outcome = unlock(world, {"good": verifier}, verifier.disk, jwe=changed)
    expect(outcome.status != 0, "it ended well")
    expect(not outcome.stdout, "something was written that is not authentic")


# --- the cap ----------------------------------------------------------------------------------------------------


def _quoted_cap(world: Tested, bank: str = "sha256") -> bytes:
    verifier = Verifier(Disk(), world.ak, selection=f"{bank}:15")
    outcome = unlock(world, {"good": verifier}, verifier.disk)
    expect(verifier.values, f"it did not quote PCR 15: {outcome.said.strip()[-200:]}")
    return verifier.values[-1]


@collect(DUTIES, "11.1", "a client that caps itself does so before it hands the key on")
def _(world: Tested) -> None:
    if not world.caps_itself:
        raise NotTestedError("--caps-itself says that the command is followed by nothing that caps")
    opens(world, Verifier(Disk(), world.ak))
    expect(any(_quoted_cap(world)), "PCR 15 is zero after the key was given")


@collect(DUTIES, "11.3", "the cap extends each bank by TPM2_PCR_Event over a text of the grammar")
def _(world: Tested) -> None:
    if not world.cap:
        raise NotTestedError("--cap names the command that the initrd runs before it hands over")
    expect(not any(_quoted_cap(world)), "PCR 15 is not zero before the cap: reset the TPM and start again")
    done = subprocess.run(shlex.split(world.cap), capture_output=True, timeout=world.timeout, check=False)
    expect(
        done.returncode == 0,
        f"the cap ends with status {done.returncode}: {done.stderr.decode(errors='replace')[-200:]}",
    )
    texts = [CAP_HEADER]
    if world.cap_events:
        texts = cap_texts(Path(world.cap_events).read_bytes())
    for bank in ("sha256", "sha384"):
        try:
            value = _quoted_cap(world, bank)
        except ViolationError:
            if bank == "sha256":
                raise
            continue  # the TPM has no such bank
        expect(any(value), f"PCR 15 of {bank} is zero after the cap")
        expect(value == cap_replay(texts, bank), f"PCR 15 of {bank} is not what the text leads to")


@collect(DUTIES, "11.1", "a cap comes after a refusal as well, and stays")
def _(world: Tested) -> None:
    if not world.cap:
        raise NotTestedError("--cap names the command that the initrd runs before it hands over")
    before = _quoted_cap(world)
    outcome = unlock(world, {"refuses": lambda _: problem(403, "pcr-mismatch")}, Disk())
    expect(outcome.status != 0, "a refusal ends well")
    subprocess.run(shlex.split(world.cap), capture_output=True, timeout=world.timeout, check=False)
    expect(_quoted_cap(world) != before, "after a refusal the cap extends nothing")
