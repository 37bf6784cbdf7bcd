"""Vectors of signed reference values: whole unlock requests under a policy that trusts signers."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tools.conformance.evidence import signed_values as made
from tools.conformance.evidence.draft import Asked, Draft
from tools.conformance.primitives.curve import CURVES
from tools.conformance.primitives.encoding import b64u, compact, unb64u
from tools.conformance.tpm.machine import CAP_PCR, Machine
from tools.conformance.tpm.signing import sign
from tools.conformance.tpm.structures import ClockReading
from tools.vectors.activation import AKS, key
from tools.vectors.keys import ecc, octets, scalar, stored_rsa
from tools.vectors.requests import device as request_device

POLICY: Final = "web"
SELECTION: Final = "sha256:4,7,9,11,15"
#: The moment of every request, and the earlier ones of the policy.
NOW: Final = datetime(2026, 11, 27, 12, tzinfo=UTC)
_APPROVED_AT: Final = NOW - timedelta(days=30)
_RAISED_AT: Final = NOW - timedelta(days=10)
_AK: Final = "ecc256:ecdsa-sha256"
_CURVE: Final = CURVES["P-256"]
_BEFORE: Final = ClockReading(100_000, 7, 3)
_NOW: Final = ClockReading(200_000, 7, 3)
#: Bytes of a TPMT_SIGNATURE before an RSA signature: algorithm, hash and size.
_TPMT_HEAD: Final = 6

PrivateKey = rsa.RSAPrivateKey | made.StatementKey


@cache
def _keys() -> dict[str, PrivateKey]:
    edwards = ed25519.Ed25519PrivateKey.from_private_bytes(octets("signer pipeline-ed25519", 32))
    return {
        "vendor": stored_rsa("ek-rsa2048"),
        "vendor-3072": stored_rsa("ek-rsa3072"),
        "vendor-4096": stored_rsa("ek-rsa4096"),
        "pipeline": ecc("signer pipeline", ec.SECP256R1()),
        "pipeline-ed25519": edwards,
        "locked": ecc("signer locked", ec.SECP256R1()),
    }


@cache
def _foreign() -> ec.EllipticCurvePrivateKey:
    return ecc("signer that nobody trusts", ec.SECP256R1())


def _signer(name: str, pcrs: list[int], label: str | None = None, **more: Any) -> dict[str, Any]:
    public = _keys()[name].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    form = "pcrsig" if isinstance(_keys()[name], rsa.RSAPrivateKey) else "statement"
    fields = {"name": name, "form": form, "key": b64u(public), "pcrs": pcrs, "label": label}
    return fields | {"no_rollback": False, "highest": {}} | more


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def policy() -> dict[str, Any]:
    """Return what a verifier holds of the policy; each vector names the signers that it trusts."""
    highest = {"web": {"version": 30, "at": _time(_RAISED_AT)}}
    return {
        "name": POLICY,
        "now": _time(NOW),
        "approved_at": _time(_APPROVED_AT),
        "retired": ["web/bad"],
        "signers": [
            *(_signer(name, [11]) for name in ("vendor", "vendor-3072", "vendor-4096")),
            _signer("pipeline", [4, 9], "web"),
            _signer("pipeline-ed25519", [4, 9]),
            _signer("locked", [4, 9], no_rollback=True, highest=highest),
        ],
    }


def device() -> dict[str, Any]:
    """Return the record that a verifier holds of the device: that of the other requests, under this policy."""
    approved = b64u(_machine().values(SELECTION))
    aks = {_AK: b64u(_machine().ak_public)}
    return request_device() | {"aks": aks, "selection": SELECTION, "approved": approved}


def _machine(*changed: int) -> Machine:
    area, name = AKS[_AK]
    machine = Machine(
        key(name, "ak"), key("P-256", "ek L-2"), area, fixed=True, clock=_BEFORE.clock, reset_count=7
    )
    for pcr in changed:
        machine.extend(pcr, b"another release")
    return machine


def _vector(
    name: str,
    reason: str,
    signed_values: Mapping[str, Any],
    code: str | None,
    *,
    changed: tuple[int, ...],
    trusted: tuple[str, ...],
    signed: tuple[str, str, int | None] | None = None,
) -> dict[str, Any]:
    secret = scalar(f"X signed {name}", _CURVE)
    x = ec.derive_private_key(secret, ec.SECP256R1()).public_key().public_numbers()
    kid, nonce = device()["kid"], b64u(octets(f"nonce signed {name}", 32))
    machine = _machine(*changed)
    draft = Draft(machine, Asked(kid, nonce, SELECTION, _CURVE, (x.x, x.y)), _BEFORE, _NOW)
    draft.attest = {"signed_values": signed_values}
    signer, label, version = signed or (None, None, None)
    return {
        "name": name,
        "reason": reason,
        "trusted": list(trusted),
        "nonce": {"text": nonce, "state": "fresh"},
        "x_secret": b64u(_CURVE.octets(secret)) if code is None else None,
        "body": draft.body().decode(),
        "status": 200 if code is None else 403,
        "code": code,
        "signed": None if signer is None else {"signer": signer, "label": label, "version": version},
    }


# --- .pcrsig ------------------------------------------------------------------------------------------------------


def _pcr_11() -> bytes:
    return _machine(11).pcrs["sha256"][11]


def _label(signer: str) -> str:
    return f"{signer}/{made.policy_digest(_pcr_11()).hex()[:12]}"


def _images() -> Iterator[dict[str, Any]]:
    """Yield requests of a machine that booted another image than the approved one: PCR 11 differs."""
    keys = _keys()
    vendor = keys["vendor"]
    later = stored_rsa("ak-rsa2048")
    assert isinstance(vendor, rsa.RSAPrivateKey)  # noqa: S101 - our own table
    value, phase = _pcr_11(), octets("PCR 11 of a later phase", 32)
    one = made.entry(vendor, value)
    foreign = made.entry(later, value)
    pol = made.policy_digest(value)
    spki = vendor.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    over_spki = digest.finalize().hex()

    def raw(message: bytes, scheme: Any, algorithm: hashes.HashAlgorithm) -> dict[str, Any]:
        return one | {"sig": base64.b64encode(vendor.sign(message, scheme, algorithm)).decode()}

    pkcs1 = padding.PKCS1v15()
    by_ec = base64.b64encode(
        _foreign().sign(pol, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    ).decode()
    good: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
        "one entry": ("one signature over the quoted PCR 11", [one], {}),
        "entries of other banks": ("entries of sha1 and sha384 are ignored", [one], {"sha1": [one], "sha384": [one]}),
        "two keys and several phases": (
            "one entry of the trusted key is over the quoted value",
            [foreign, made.entry(later, phase), made.entry(vendor, phase), one],
            {},
        ),
        "unknown members": ("members that nobody knows change nothing", [one | {"future": [1]}, {"more": {}}], {"future": 7}),
        "an entry that is there twice": ("the second one changes nothing", [one, one], {}),
        "the reference of systemd 262": ("ref is initrd", [made.entry(vendor, value, "initrd")], {}),
        "32 entries": ("as many as are read", [*(made.entry(later, phase) for _ in range(15)), one], {"sha384": [7] * 16}),
    }  # fmt: skip
    for name, (reason, entries, more) in good.items():
        yield _vector(
            f"image: {name}", reason, {"pcrsig": {"sha256": entries} | more}, None,
            changed=(11,), trusted=("vendor",), signed=("vendor", _label("vendor"), None),
        )  # fmt: skip
    for signer in ("vendor-3072", "vendor-4096"):
        private = keys[signer]
        assert isinstance(private, rsa.RSAPrivateKey)  # noqa: S101 - our own table
        yield _vector(
            f"image: {signer}", "RSA of 2048 to 4096 bits", {"pcrsig": {"sha256": [made.entry(private, value)]}}, None,
            changed=(11,), trusted=("vendor", signer), signed=(signer, _label(signer), None),
        )  # fmt: skip
    bad: dict[str, tuple[str, list[Any] | None, str]] = {
        "another key": ("no signer's key signed", [foreign], "statement-untrusted"),
        "the fingerprint of another key": ("pkfp is the signer's, sig is not", [foreign | {"pkfp": one["pkfp"]}], "statement-untrusted"),
        "the fingerprint of an SPKI": ("pkfp is over another encoding of the key", [one | {"pkfp": over_spki}], "statement-untrusted"),
        "an EC key": ("an EC key signs no .pcrsig", [one | {"sig": by_ec}], "statement-untrusted"),
        "RSASSA-PSS": ("another scheme than PKCS1-v1_5", [one | {"sig": _pss(vendor, pol)}], "statement-untrusted"),
        "SHA-384": ("another hash", [raw(pol, pkcs1, hashes.SHA384())], "statement-untrusted"),
        "over the value itself": ("the signature is over PCR 11, not over pol", [raw(value, pkcs1, hashes.SHA256())], "statement-untrusted"),
        "a reference that was not signed": ("ref says initrd, and the signature is without it", [one | {"ref": "initrd"}], "statement-untrusted"),
        "another part of the boot": ("ref is not initrd", [made.entry(vendor, value, "sysinit")], "statement-mismatch"),
        "another phase": ("the signature is over another PCR 11", [made.entry(vendor, phase)], "statement-mismatch"),
        "the policy digest of another value": ("pol is not that of the quoted PCR 11", [made.entry(vendor, phase) | {"sig": one["sig"]}], "statement-mismatch"),
        "no entry": ("the list is empty", [], "statement-malformed"),
        "another bank alone": ("entries of sha384 are ignored", None, "statement-malformed"),
        "more PCRs": ("pcrs is not [11]", [one | {"pcrs": [11, 12]}], "statement-malformed"),
        "base64url": ("sig is base64", [one | {"sig": b64u(base64.b64decode(one["sig"]))}], "statement-malformed"),
        "33 entries": ("one more than are read", [one] * 33, "statement-malformed"),
        "more than 16 KiB": ("larger than is read", [one, {"pad": "x" * 16384}], "statement-malformed"),
    }  # fmt: skip
    for name, (reason, given, code) in bad.items():
        pcrsig = {"sha384": [one]} if given is None else {"sha256": given}
        yield _vector(f"image: {name}", reason, {"pcrsig": pcrsig}, code, changed=(11,), trusted=("vendor",))
    everything = {"pcrsig": {"sha256": [one]}}
    for name, reason, code, changed, trusted in (
        (
            "no signer is trusted",
            "signed values count only where a policy says so",
            "pcr-mismatch",
            (11,),
            (),
        ),
        ("PCR 7 differs, too", "all other PCRs have to be as approved", "pcr-mismatch", (7, 11), ("vendor",)),
        ("PCR 4 differs, too", "nobody signed PCR 4", "pcr-mismatch", (4, 11), ("vendor",)),
        ("a running system", "the cap decides, whatever is signed", "capped", (CAP_PCR,), ("vendor",)),
    ):
        yield _vector(f"image: {name}", reason, everything, code, changed=changed, trusted=trusted)


def _pss(private: rsa.RSAPrivateKey, message: bytes) -> str:
    return base64.b64encode(sign(private, "rsapss-sha256", message, fixed=True)[_TPMT_HEAD:]).decode()


# --- statements ---------------------------------------------------------------------------------------------------


def _payload(**changes: Any) -> dict[str, Any]:
    values = _machine(4, 9).pcrs["sha256"]
    return {
        "bank": "sha256",
        "label": "web/31",
        "not_after": _time(NOW + timedelta(days=60)),
        "not_before": _time(NOW - timedelta(days=1)),
        "policies": ["db", POLICY],
        "values": {str(pcr): values[pcr].hex() for pcr in (4, 9)},
        "version": 31,
    } | changes


def _statements() -> Iterator[dict[str, Any]]:
    """Yield requests of a machine that booted another release than the approved one: PCR 4 and 9 differ."""
    keys = _keys()
    pipeline, locked = keys["pipeline"], keys["locked"]
    assert isinstance(pipeline, ec.EllipticCurvePrivateKey)  # noqa: S101 - our own table
    assert isinstance(locked, ec.EllipticCurvePrivateKey)  # noqa: S101 - our own table
    edwards = keys["pipeline-ed25519"]
    assert isinstance(edwards, ed25519.Ed25519PrivateKey)  # noqa: S101 - our own table
    one = made.statement(pipeline, _payload())
    other = made.statement(pipeline, _payload(values={"4": "00" * 32, "9": "00" * 32}, label="web/30"))
    foreign = made.statement(_foreign(), _payload())
    signed = ("pipeline", "web/31", 31)
    good: dict[str, tuple[str, list[Any]]] = {
        "ES256": ("signed with P-256", [one]),
        "beside others": ("one of another release, one of another signer, and texts that are none", [other, foreign, "no statement", one]),
        "the eighth of eight": ("as many as are read", [*(f"{n}.b.c" for n in range(7)), one]),
        "from now on": ("not_before is now", [made.statement(pipeline, _payload(not_before=_time(NOW)))]),
        "for a second": ("not_after is a second from now", [made.statement(pipeline, _payload(not_after=_time(NOW + timedelta(seconds=1))))]),
    }  # fmt: skip
    for name, (reason, statements) in good.items():
        yield _vector(
            f"statement: {name}", reason, {"statements": statements}, None,
            changed=(4, 9), trusted=("vendor", "pipeline"), signed=signed,
        )  # fmt: skip
    yield _vector(
        "statement: EdDSA", "signed with Ed25519", {"statements": [made.statement(edwards, _payload(label="31"))]}, None,
        changed=(4, 9), trusted=("pipeline-ed25519",), signed=("pipeline-ed25519", "31", 31),
    )  # fmt: skip
    yield _vector(
        "statement: one PCR of two", "PCR 9 is as approved",
        {"statements": [made.statement(pipeline, _payload(values={"4": _payload()["values"]["4"]}))]}, None,
        changed=(4,), trusted=("pipeline",), signed=signed,
    )  # fmt: skip
    yield _vector(
        "statement: approved values need none", "what is wrong inside is as if it were not there",
        {"statements": ["no statement", 7], "pcrsig": []}, None, changed=(), trusted=("pipeline",),
    )  # fmt: skip
    head = made.header(pipeline)
    text = compact(_payload())
    values = _payload()["values"]
    code = "statement-malformed"
    wrong_label = _payload(label="db/31")
    bad: dict[str, tuple[str, list[Any], str]] = {
        "another signer": ("the policy does not trust the key", [foreign], "statement-untrusted"),
        "the kid of a signer": ("kid is a signer's, the signature is not", [made.statement(_foreign(), _payload(), head)], "statement-untrusted"),
        "a changed payload": ("the signature is over another payload", [_swapped(one, text.replace(b"web/31", b"web/32"))], "statement-untrusted"),
        "another algorithm": ("alg is not that of the key", [made.statement(pipeline, _payload(), head | {"alg": "EdDSA"})], "statement-untrusted"),
        "no algorithm": ("alg is none", [made.statement(pipeline, _payload(), head | {"alg": "none"})], code),
        "another typ": ("it is not a statement of this version", [made.statement(pipeline, _payload(), head | {"typ": "JWT"})], code),
        "a member of the header": ("the header has more than three members", [made.statement(pipeline, _payload(), head | {"crit": []})], code),
        "another value": ("PCR 4 and 9 are not those that were quoted", [other], "statement-mismatch"),
        "another PCR alone": ("PCR 9 differs, and nobody signed it", [made.statement(pipeline, _payload(values={"4": values["4"]}))], "pcr-mismatch"),
        "two halves": ("two statements are not put together", [made.statement(pipeline, _payload(values={pcr: values[pcr]})) for pcr in values], "pcr-mismatch"),
        "its time is over": ("not_after is now", [made.statement(pipeline, _payload(not_after=_time(NOW)))], "statement-expired"),
        "its time is to come": ("not_before is a second from now", [made.statement(pipeline, _payload(not_before=_time(NOW + timedelta(seconds=1))))], "statement-early"),
        "another policy": ("policies has not this one", [made.statement(pipeline, _payload(policies=["db"]))], "statement-elsewhere"),
        "another bank": ("the policy is over sha256", [made.statement(pipeline, _payload(bank="sha384", values={"4": "00" * 48}))], "statement-elsewhere"),
        "a PCR beyond the scope": ("the signer may sign PCR 4 and 9", [made.statement(pipeline, _payload(values=values | {"7": _machine().pcrs["sha256"][7].hex()}))], "statement-out-of-scope"),
        "a PCR that is not quoted": ("the signer may sign PCR 4 and 9", [made.statement(pipeline, _payload(values=values | {"8": "00" * 32}))], "statement-out-of-scope"),
        "the cap": ("no signer is good for the cap PCR", [made.statement(pipeline, _payload(values=values | {"15": "00" * 32}))], "statement-out-of-scope"),
        "a label beyond the scope": ("the signer may sign labels of web", [made.statement(pipeline, wrong_label)], "statement-out-of-scope"),
        "a retired label": ("web/bad is retired", [made.statement(pipeline, _payload(label="web/bad"))], "statement-retired"),
        "below a retired label": ("so is everything below it", [made.statement(pipeline, _payload(label="web/bad/2"))], "statement-retired"),
        "members in another order": ("the payload is not canonical", [made.statement(pipeline, b'{"version":31,' + text[1:].replace(b',"version":31', b""))], code),
        "white space": ("the payload is not canonical", [made.statement(pipeline, text.replace(b",", b", "))], code),
        "a member twice": ("the payload is not canonical", [made.statement(pipeline, text.replace(b'"version":31', b'"version":31,"version":31'))], code),
        "an unknown member": ("the payload has other members", [made.statement(pipeline, _payload(future=1))], code),
        "a missing member": ("the payload has no version", [made.statement(pipeline, {k: v for k, v in _payload().items() if k != "version"})], code),
        "a version that is a text": ("version is a number", [made.statement(pipeline, _payload(version="31"))], code),
        "a version of 2^53": ("version is at most 2^53 - 1", [made.statement(pipeline, _payload(version=2**53))], code),
        "hex in capitals": ("values are hex in lower case", [made.statement(pipeline, _payload(values={"4": values["4"].upper()}))], code),
        "a short value": ("a value has the size of the bank", [made.statement(pipeline, _payload(values={"4": "00"}))], code),
        "policies out of order": ("policies is ascending", [made.statement(pipeline, _payload(policies=[POLICY, "db"]))], code),
        "a time with fractions": ("a time has whole seconds", [made.statement(pipeline, _payload(not_after="2027-01-01T00:00:00.5Z"))], code),
        "no time at all": ("not_before is not before not_after", [made.statement(pipeline, _payload(not_before=_time(NOW), not_after=_time(NOW)))], code),
        "padded base64url": ("a part ends with =", [f"{one}="], code),
        "two parts": ("no signature", [one.rpartition(".")[0]], code),
        "too long": ("16385 characters", ["x" * 16385], code),
        "nine statements": ("none of more than eight is read", [one, *(f"{n}.b.c" for n in range(8))], code),
        "a number among them": ("statements are texts", [one, 7], code),
    }  # fmt: skip
    for name, (reason, statements, expected) in bad.items():
        yield _vector(
            f"statement: {name}", reason, {"statements": statements}, expected,
            changed=(4, 9), trusted=("pipeline",),
        )  # fmt: skip
    yield from _versions(locked)


def _versions(locked: ec.EllipticCurvePrivateKey) -> Iterator[dict[str, Any]]:
    """Yield requests under a signer without rollback; version 30 was permitted."""
    for version, code in ((29, "statement-rolled-back"), (30, None), (31, None)):
        text = made.statement(locked, _payload(version=version, label=f"web/{version}"))
        yield _vector(
            f"version: {version}", "30 is the highest that was permitted of the family web", {"statements": [text]}, code,
            changed=(4, 9), trusted=("locked",), signed=None if code else ("locked", f"web/{version}", version),
        )  # fmt: skip
    yield _vector(
        "version: another family", "each family of labels has a highest version of its own",
        {"statements": [made.statement(locked, _payload(version=1, label="db/1"))]}, None,
        changed=(4, 9), trusted=("locked",), signed=("locked", "db/1", 1),
    )  # fmt: skip
    yield _vector(
        "version: the approved state", "it was approved before version 30 was permitted", {}, "statement-rolled-back",
        changed=(), trusted=("locked",),
    )  # fmt: skip


def _swapped(text: str, payload: bytes) -> str:
    """Return a statement with another payload under the same signature."""
    head, _, signature = text.split(".")
    if unb64u(head) == payload:
        raise ValueError("nothing changed")
    return f"{head}.{b64u(payload)}.{signature}"


def signed_values() -> Iterator[dict[str, Any]]:
    """Yield requests to ``POST /rec/{kid}`` with signed values, and their answers."""
    yield from _images()
    yield from _statements()
