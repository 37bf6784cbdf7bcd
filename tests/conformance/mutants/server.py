"""Mutants of the server: a function with a fragment of its source replaced, in this process and for a while.

A patch whose fragment is not there exactly once fails, so a mutant cannot quietly become the server itself.
"""

from __future__ import annotations
import __future__

import builtins
import dis
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Final


@dataclass(frozen=True)
class Mutant:
    """A fault: its name, ``module:qualified.name`` of a function below ``tang_attest``, and the replacements."""

    name: str
    where: str
    changes: tuple[tuple[str, str], ...]


def _one(name: str, where: str, old: str, new: str) -> Mutant:
    return Mutant(name, where, ((old, new),))


MUTANTS: Final = (
    # --- the signature, and what is signed ---
    _one(
        "the signature is not verified",
        "protocol.tpm:verify_signature",
        'raise Refused("signature-invalid", "The quote is not signed by the enrolled AK.") from None',
        "return",
    ),
    Mutant(
        "the hash is chosen by the signature",
        "protocol.tpm:verify_signature",
        (
            ("if (signature.scheme, signature.hash_name) != (key.scheme, key.hash_name):", "if False:"),
            ("getattr(hashes, key.hash_name.upper())", "getattr(hashes, signature.hash_name.upper())"),
        ),
    ),
    _one("any magic will do", "protocol.quote:check_is_quote", "if not attest.magic_ok:", "if False:"),
    _one("any structure will do", "protocol.quote:check_is_quote", "if not attest.is_quote:", "if False:"),
    _one("bytes may follow the structure", "protocol.tpm:_check_end", "if octets.left():", "if False:"),
    _one(
        "the qualifying data is not compared",
        "protocol.quote:check_binding",
        "if not tpm.equal(attest.extra_data, binding):",
        "if False:",
    ),
    _one(
        "half of the qualifying data is compared",
        "protocol.quote:check_binding",
        "tpm.equal(attest.extra_data, binding)",
        "tpm.equal(attest.extra_data[:0], binding[:0])",
    ),
    _one(
        "X is not in the qualifying data",
        "protocol.challenge:unlock_digest",
        r"{kid}\n{x_thumbprint}\n",
        r"{kid}\n",
    ),
    _one(
        "the label is that of another purpose",
        "protocol.challenge:unlock_digest",
        "tang-attest/v1 unlock",
        "tang-attest/v1 verify",
    ),
    _one(
        "further banks may be quoted",
        "protocol.quote:check_selection",
        "if attest.banks != ((selection.bank, selection.pcrs),):",
        "if (selection.bank, selection.pcrs) not in attest.banks:",
    ),
    _one(
        "fewer PCRs may be quoted",
        "protocol.quote:check_selection",
        "if attest.banks != ((selection.bank, selection.pcrs),):",
        "if not set(attest.banks[0][1]) <= set(selection.pcrs):",
    ),
    _one(
        "the values need not be the signed ones",
        "protocol.quote:check_pcr_digest",
        "if not tpm.equal(attest.pcr_digest, selection.digest(values, hash_name)):",
        "if False:",
    ),
    # --- the clock ---
    _one(
        "the clock is not looked at",
        "protocol.quote:verify_quote",
        "if device.clock is not None:",
        "if False:",
    ),
    _one(
        "counters are compared as numbers",
        "protocol.quote:advance",
        "return (now - before + 2**31) % 2**32 - 2**31",
        "return now - before",
    ),
    _one(
        "restarts may fall",
        "protocol.quote:check_clock",
        "if advance(before.restart_count, now.restart_count) < 0:",
        "if False:",
    ),
    _one(
        "the clock may stand",
        "protocol.quote:check_clock",
        "if now.clock <= before.clock:",
        "if now.clock < before.clock:",
    ),
    _one(
        "quotes of a boot that is over stand",
        "store.decisions:is_step_back",
        "return behind_ms == 0 or",
        "return False and",
    ),
    _one(
        "quotes may not overtake each other",
        "store.decisions:is_step_back",
        "return behind_ms == 0 or",
        "return True or",
    ),
    # --- the order ---
    _one(
        "the qualifying data before the signature",
        "protocol.quote:verify_quote",
        "    tpm.verify_signature(",
        "    check_binding(tpm.parse_attest(evidence.quote), binding)\n    tpm.verify_signature(",
    ),
    _one(
        "the selection before the qualifying data",
        "protocol.quote:verify_quote",
        "    check_binding(attest, binding)\n",
        "    check_selection(attest, selection)\n    check_binding(attest, binding)\n",
    ),
    _one(
        "the clock before the values",
        "protocol.quote:verify_quote",
        "    values = selection.split(evidence.pcrs)\n",
        "    device.clock and check_clock(device.clock, attest.clock_info)\n"
        "    values = selection.split(evidence.pcrs)\n",
    ),
    _one(
        "the nonce before X",
        "service.unlock.unlock:Unlock._respond",
        "x = _read_point(bound, jwk)",
        "self._challenges.check(Purpose.UNLOCK, entry.kid, evidence.nonce, entry.at); x = _read_point(bound, jwk)",
    ),
    # --- nonces ---
    _one("nonces are not used up", "store.records.nonces:use", "if used:", "if False:"),
    _one(
        "a refusal uses no nonce up",
        "service.unlock.unlock:Unlock._respond",
        "await self._decide(bound, evidence, fresh, quote, replace(verdict, outcome=refusal), entry)",
        "pass",
    ),
    _one("a nonce is good for any purpose", "protocol.challenge:_mac", "{purpose}", "any"),
    _one("a nonce is good for any key", "protocol.challenge:_mac", "{subject}", "any"),
    _one("a nonce never expires", "protocol.challenge:check_nonce", "if now_ms >= expires:", "if False:"),
    _one(
        "a nonce need not be ours",
        "protocol.challenge:check_nonce",
        "if not hmac.compare_digest(",
        "if not all(",
    ),
    # --- X and Y ---
    _one(
        "X may be off its curve",
        "protocol.values.points:Point.__post_init__",
        'raise Malformed("point-invalid", f"The point is not on {self.curve.name}.")',
        "return",
    ),
    _one(
        "the curve of X is found out last",
        "service.unlock.unlock:_read_point",
        "if x.curve.name != bound.key.curve:",
        "if False:",
    ),
    _one(
        "Y is mirrored",
        "protocol.exchange:respond",
        "return Reply(key.multiply(x))",
        "return Reply(key.multiply(x).negated())",
    ),
    _one(
        "coordinates without their zeros are refused",
        "protocol.values.points:_coordinate",
        "len(text) > (curve.size * 4 + 2) // 3",
        "len(text) != (curve.size * 4 + 2) // 3",
    ),
    # --- the policy ---
    _one(
        "every boot is permitted",
        "protocol.policy:ReferencePolicy.judge",
        "raise Refused.because(*reasons, *broken)",
        "return counting[0]",
    ),
    _one(
        "the cap is forgotten",
        "protocol.policy:ReferencePolicy.judge",
        "if pcr not in self.judged_pcrs}",
        "if pcr not in self.judged_pcrs and pcr != self.cap_pcr}",
    ),
    _one(
        "signed values count although nobody trusts their signer",
        "protocol.policy:ReferencePolicy.judge",
        "        if not met and self.signers:\n",
        "        if not met and brought.member:\n            met = counting\n        if not met and self.signers:\n",
    ),
    _one(
        "announced states count",
        "protocol.policy:ReferencePolicy.counting",
        " and state.obstacle(now) is None",
        "",
    ),
    _one(
        "announced values are trusted",
        "service.policies.announce:_announced",
        "Life.STAGED if trusted else Life.PROPOSED",
        "Life.STAGED",
    ),
    _one(
        "a machine that is not approved announces",
        "service.policies.announce:_check_approved",
        'raise Refused("pcr-mismatch", "The machine that announces values runs nothing approved itself.")',
        "return",
    ),
    _one(
        "a capped boot may be announced",
        "service.policies.announce:_announced",
        'if any(values.get(policy.cap_pcr, b"")):',
        "if False:",
    ),
    _one(
        "anybody's bytes are a verdict on a running machine",
        "service.rounds.verify:_is_verdict",
        "return refusal.code in VERDICTS",
        "return True",
    ),
    # --- enrollment ---
    _one(
        "an AK may have any attributes",
        "protocol.enrollment:accept_ak",
        "if reasons := tpm.ak_shortcomings(public):",
        "if reasons := ():",
    ),
    _one(
        "the credential need not be activated",
        "protocol.enrollment:check_activation",
        "if not tpm.equal(activation_proof(nonce, secret).encode(), proof.encode()):",
        "if False:",
    ),
    _one(
        "a used token is good",
        "service.enrollment.admission:check_usable",
        "if token.spent is not None:",
        "if False:",
    ),
    _one(
        "a lost 201 stays lost",
        "service.enrollment.enroll:Enroll._known",
        "if token.machines == 1 and token.used_at is None:",
        "if True:",
    ),
    _one(
        "the first quote is for any name",
        "protocol.enrollment:enrollment_digest",
        r"{nonce}\n{name}\n{proof}",
        r"{nonce}\n{proof}",
    ),
    _one(
        "the advertisement names no AK",
        "service.tang.server_keys:ServerKeys.device_advertisement",
        '"ak_name": bound.device.ak_name.hex(), ',
        "",
    ),
    _one(
        "the advertisement is signed as something else",
        "protocol.values.advertisement:_sign",
        '"cty": "jwk-set+json"',
        '"cty": "json"',
    ),
    # --- messages ---
    _one("members may be repeated", "web.wire:_no_repetition", "if len(members) != len(pairs):", "if False:"),
    _one(
        "critical members are ignored",
        "web.wire:_known",
        "if isinstance(member, str) and member not in fields:",
        "if False:",
    ),
    _one(
        "unknown members of signed values are refused",
        "web.wire:AttestMember.evidence",
        "        return Evidence(\n",
        '        if set(self.signed_values or ()) - {"pcrsig", "statements"}:\n'
        '            raise Malformed("evidence-malformed", "A member is unknown.")\n'
        "        return Evidence(\n",
    ),
    _one(
        "base64url may be padded",
        "protocol.values.base64url:unb64u",
        "if b64u(data) != text:",
        'if b64u(data) != text.rstrip("="):',
    ),
    _one(
        "a body is judged before its key",
        "web.attest_routes:AttestRoutes._about",
        "        except Malformed:\n            await self.unlock.check_known(kid)\n            raise\n",
        "        except Malformed:\n            raise\n",
    ),
    _one(
        "a late client gets no new challenge",
        "web.attest_routes:_renewed",
        'if refusal.code != "nonce-expired":',
        "if True:",
    ),
)


class PatchError(Exception):
    """A patch that does not fit the source any more."""


def _find(where: str) -> FunctionType:
    module_name, _, path = where.partition(":")
    found: Any = importlib.import_module(f"tang_attest.{module_name}")
    for name in path.split("."):
        found = getattr(found, name, None)
    found = inspect.unwrap(found)
    if not isinstance(found, FunctionType):
        raise PatchError(f"{where} is no function")
    return found


def changed_code(mutant: Mutant) -> tuple[FunctionType, CodeType]:
    """Return the function that *mutant* changes, and its changed code.  Raises :class:`PatchError`."""
    function = _find(mutant.where)
    source = inspect.getsource(function)
    for old, new in mutant.changes:
        if source.count(old) != 1:
            raise PatchError(f"{mutant.name}: {mutant.where} has {source.count(old)} times: {old}")
        source = source.replace(old, new)
    made = compile(textwrap.dedent(source), mutant.name, "exec", __future__.annotations.compiler_flag)
    code = _inner(made, function)
    if unknown := _globals(code) - function.__globals__.keys() - vars(builtins).keys():
        raise PatchError(f"{mutant.name}: {mutant.where} does not know {', '.join(sorted(unknown))}")
    return function, code


def _globals(code: CodeType) -> set[str]:
    """Return the global names that *code* and what is inside it read: a NameError is not the fault that is meant."""
    inner = (it for it in code.co_consts if isinstance(it, CodeType))
    read = {it.argval for it in dis.get_instructions(code) if it.opname == "LOAD_GLOBAL"}
    return read.union(*map(_globals, inner))


def _inner(made: CodeType, function: FunctionType) -> CodeType:
    found = [it for it in made.co_consts if isinstance(it, CodeType) and it.co_name == function.__name__]
    if len(found) != 1 or found[0].co_freevars != function.__code__.co_freevars:
        raise PatchError(f"{function.__qualname__} cannot be compiled on its own")
    return found[0]


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Run the block with the mutant in place of the server; every importer of the function sees it."""
    function, code = changed_code(mutant)
    original = function.__code__
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = original
