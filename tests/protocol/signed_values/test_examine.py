"""Signed values under a policy: the ones that count, and the reason for each that does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState, StateLimits
from tang_attest.protocol.signed_values import keys
from tang_attest.protocol.signed_values.examine import MAX_STATEMENTS, MAX_TOTAL, Brought
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.signed_values.signer import (
    MAX_FAMILIES,
    Signer,
    Signers,
    check_signer,
    load_signers,
    unpinned,
)
from tang_attest.protocol.values.pcr import Selection
from tests.keys.rsa_keys import draw
from tests.protocol.signed_values import signing
from tests.protocol.signed_values.signing import NOW

SELECTION = Selection("sha256", (4, 7, 9, 11, 15))
BASE = {4: b"\x04" * 32, 7: b"\x07" * 32, 9: b"\x09" * 32, 11: b"\x0b" * 32, 15: bytes(32)}
NEW_11 = BASE | {11: b"\xbb" * 32}
NEW_4_9 = BASE | {4: b"\x44" * 32, 9: b"\x99" * 32}
STATEMENT = {4: NEW_4_9[4], 9: NEW_4_9[9]}


def policy(*signers: Signer, **fields: Any) -> ReferencePolicy:
    """A policy with one state, the boot before the update, and *signers*."""
    state = ReferenceState("before", BASE, "recorded", created_at=NOW - timedelta(days=30))
    return ReferencePolicy("p", SELECTION, 15, (state,), signers=Signers(signers, **fields))


def judge(
    judging: ReferencePolicy,
    values: Mapping[int, bytes],
    *,
    pcrsig: object = None,
    statements: object = None,
    now: datetime = NOW,
) -> ReferenceState:
    """The state that permits."""
    member = {"pcrsig": pcrsig, "statements": statements}
    return judging.judge("d", dict(values), now, brought=Brought(member))


def codes(judging: ReferencePolicy, values: Mapping[int, bytes], **brought: Any) -> list[str]:
    """The codes of a refusal, in order."""
    with pytest.raises(Refused) as refusal:
        judge(judging, values, **brought)
    return [reason.code for reason in refusal.value.reasons]


def test_a_signed_image_opens_with_nobody_approving_it() -> None:
    """PCR 11 is new and signed; everything else is as approved."""
    signer, key = signing.vendor()
    state = judge(policy(signer), NEW_11, pcrsig=signing.pcrsig(key, NEW_11[11]))
    assert state.label == "before"
    assert state.signed is not None
    assert (state.signed.signer, state.signed.version, dict(state.signed.values)) == (
        "vendor",
        None,
        {11: NEW_11[11]},
    )
    assert state.signed.label.startswith("vendor/")


def test_a_signed_statement_opens_with_nobody_approving_it() -> None:
    """PCR 4 and 9, with label and version."""
    signer, key = signing.pipeline()
    state = judge(policy(signer), NEW_4_9, statements=[signing.signed(key, STATEMENT, version=7)])
    assert state.signed is not None
    assert state.signed.named() == {"label": "web/1", "signer": "pipeline", "version": 7, "pcrs": [4, 9]}


def test_approved_values_need_no_signature() -> None:
    """And show none, whatever was brought."""
    signer, key = signing.pipeline()
    values = {pcr: BASE[pcr] for pcr in (4, 9)}
    assert judge(policy(signer), BASE, statements=[signing.signed(key, values)]).signed is None
    assert judge(policy(signer), BASE, statements=[17], pcrsig="x").signed is None


@pytest.mark.parametrize("pcr", [4, 7, 9])
def test_the_rest_has_to_be_as_approved(pcr: int) -> None:
    """A signature of PCR 11 helps no other PCR."""
    signer, key = signing.vendor()
    values = NEW_11 | {pcr: b"\xee" * 32}
    assert codes(policy(signer), values, pcrsig=signing.pcrsig(key, NEW_11[11]))[0] == "pcr-mismatch"


def test_without_a_signer_nothing_that_is_brought_counts() -> None:
    """Nor is it looked at."""
    _, key = signing.vendor()
    assert codes(policy(), NEW_11, pcrsig=signing.pcrsig(key, NEW_11[11])) == ["pcr-mismatch", "pcr-mismatch"]


def test_a_foreign_signature_is_refused_and_named() -> None:
    """The reason comes first, because only PCRs that are signed differ."""
    signer, _ = signing.vendor()
    assert (
        codes(policy(signer), NEW_11, pcrsig=signing.pcrsig(draw(2048), NEW_11[11]))[0]
        == "statement-untrusted"
    )
    signer, _ = signing.pipeline()
    foreign = signing.signed(ec.generate_private_key(ec.SECP256R1()), STATEMENT)
    assert codes(policy(signer), NEW_4_9, statements=[foreign])[0] == "statement-untrusted"


def test_another_phase_is_refused_and_named() -> None:
    """A .pcrsig for other values of PCR 11; a statement for other values of PCR 9."""
    signer, key = signing.vendor()
    assert codes(policy(signer), NEW_11, pcrsig=signing.pcrsig(key, b"\xaa" * 32))[0] == "statement-mismatch"
    signer, pipeline_key = signing.pipeline()
    other = signing.signed(pipeline_key, STATEMENT | {9: b"\xaa" * 32})
    assert codes(policy(signer), NEW_4_9, statements=[other])[0] == "statement-mismatch"


def test_time() -> None:
    """From not_before on, and until before not_after."""
    signer, key = signing.pipeline()
    text = signing.signed(key, STATEMENT, not_before=NOW, not_after=NOW + timedelta(hours=1))
    for now, expected in (
        (NOW - timedelta(seconds=1), "statement-early"),
        (NOW + timedelta(hours=1), "statement-expired"),
    ):
        assert codes(policy(signer), NEW_4_9, statements=[text], now=now)[0] == expected
    for now in (NOW, NOW + timedelta(minutes=59, seconds=59)):
        assert judge(policy(signer), NEW_4_9, statements=[text], now=now).signed


@pytest.mark.parametrize("beyond", [7, 11, 15])
def test_a_statement_beyond_its_signers_scope(beyond: int) -> None:
    """PCR 7, the cap, and any PCR that the policy did not give it: the whole statement does not count."""
    signer, key = signing.pipeline()
    values = STATEMENT | {beyond: NEW_4_9[beyond]}
    assert (
        codes(policy(signer), NEW_4_9, statements=[signing.signed(key, values)])[0]
        == "statement-out-of-scope"
    )


def test_a_statement_for_another_policy_or_bank() -> None:
    """It names the policies that it is for."""
    signer, key = signing.pipeline()
    longer = {pcr: value + b"\0" * 16 for pcr, value in STATEMENT.items()}
    for text in (
        signing.signed(key, STATEMENT, policies=("q",)),
        signing.signed(key, longer, bank="sha384"),
    ):
        assert codes(policy(signer), NEW_4_9, statements=[text])[0] == "statement-elsewhere"


def test_a_pcrsig_needs_the_bank_sha256() -> None:
    """A policy over sha384 quotes no value that an entry is about."""
    signer, key = signing.vendor()
    judging = replace(policy(signer), selection=Selection("sha384", SELECTION.pcrs), states=())
    values = {pcr: value + b"\0" * 16 for pcr, value in NEW_11.items()}
    assert "statement-mismatch" in codes(judging, values, pcrsig=signing.pcrsig(key, NEW_11[11]))


def test_a_label_beyond_its_signers() -> None:
    """The label that the operator gave, and those below it."""
    signer, key = signing.pipeline(label="web")
    for label in ("web", "web/2"):
        assert judge(policy(signer), NEW_4_9, statements=[signing.signed(key, STATEMENT, label=label)]).signed
    for label in ("webs", "other/web", "db/1"):
        text = signing.signed(key, STATEMENT, label=label)
        assert codes(policy(signer), NEW_4_9, statements=[text])[0] == "statement-out-of-scope"


def test_a_retired_label_counts_no_more() -> None:
    """At once, itself and what is below it; also one image of a vendor."""
    signer, key = signing.pipeline()
    text = signing.signed(key, STATEMENT, label="web/1")
    for retired in ("web", "web/1"):
        assert codes(policy(signer, retired=(retired,)), NEW_4_9, statements=[text])[0] == "statement-retired"
    assert judge(policy(signer, retired=("web/2", "we")), NEW_4_9, statements=[text]).signed
    vendor, image_key = signing.vendor()
    pcrsig = signing.pcrsig(image_key, NEW_11[11])
    state = judge(policy(vendor), NEW_11, pcrsig=pcrsig)
    assert state.signed
    assert (
        codes(policy(vendor, retired=(state.signed.label,)), NEW_11, pcrsig=pcrsig)[0] == "statement-retired"
    )


def test_a_held_label_waits_for_the_rollout() -> None:
    """As a state of a rollout does."""
    signer, key = signing.pipeline()
    text = signing.signed(key, STATEMENT, label="web/1")
    assert codes(policy(signer, held=("web",)), NEW_4_9, statements=[text])[0] == "state-not-rolled-out"


def _permitted(signer: Signer, version: int, at: datetime = NOW, label: str = "web/1") -> Signers:
    """The signers after *version* was permitted."""
    return Signers((signer,)).raised(vouched(signer, label, version), at)


def vouched(signer: Signer, label: str, version: int) -> SignedState:
    """The state of a statement of *signer*."""
    return SignedState(signer=signer.name, key=signer.key_id, label=label, version=version, values=STATEMENT)


def test_a_lower_version_is_refused_without_rollback_only() -> None:
    """Equal and higher ones are good; so is another family's."""
    for no_rollback in (False, True):
        signer, key = signing.pipeline(no_rollback=no_rollback)
        judging = replace(policy(), signers=_permitted(signer, 7))
        older = [signing.signed(key, STATEMENT, version=6, label="web/anything")]
        if no_rollback:
            assert codes(judging, NEW_4_9, statements=older)[0] == "statement-rolled-back"
        else:
            assert judge(judging, NEW_4_9, statements=older).signed
        for version, label in ((7, "web/1"), (8, "web/2"), (1, "db/1"), (0, "web")):
            text = signing.signed(key, STATEMENT, version=version, label=label)
            assert judge(judging, NEW_4_9, statements=[text]).signed


def test_a_statement_about_this_boot_explains_before_those_of_others() -> None:
    """Statements of all installed images lie beside each other; the machine sends them in an order of its own."""
    signer, key = signing.pipeline(no_rollback=True)
    judging = replace(policy(), signers=_permitted(signer, 7))
    older = signing.signed(key, STATEMENT, version=6)
    newer = signing.signed(key, {4: BASE[4], 9: b"\xaa" * 32}, version=8)
    for statements in ([older, newer], [newer, older]):
        assert codes(judging, NEW_4_9, statements=statements)[:2] == [
            "statement-rolled-back",
            "statement-mismatch",
        ]


def test_a_state_before_the_newest_version_goes_back_too() -> None:
    """Its own values do not count any more, and it still holds what nobody signs; later approvals count."""
    signer, key = signing.pipeline(no_rollback=True)
    judging = replace(policy(), signers=_permitted(signer, 7))
    assert codes(judging, BASE) == ["statement-rolled-back"]
    assert judge(judging, NEW_4_9, statements=[signing.signed(key, STATEMENT, version=7)]).signed
    approved = ReferenceState("again", BASE, "observed", created_at=NOW + timedelta(seconds=1))
    later = replace(judging, states=(*judging.states, approved))
    assert judge(later, BASE).label == "again"


def test_another_signer_does_not_help_a_state_that_went_back() -> None:
    """A vendor's signature of PCR 11 says nothing about the older PCR 4 and 9."""
    signer, _ = signing.pipeline(no_rollback=True)
    vendor, image_key = signing.vendor()
    both = replace(_permitted(signer, 7), signers=(*_permitted(signer, 7).signers, vendor))
    judging = replace(policy(), signers=both)
    assert "statement-rolled-back" in codes(judging, BASE, pcrsig=signing.pcrsig(image_key, BASE[11]))
    assert codes(judging, NEW_11, pcrsig=signing.pcrsig(image_key, NEW_11[11]))


def test_two_statements_are_not_put_together() -> None:
    """Nobody signed PCR 4 of the one with PCR 9 of the other."""
    signer, key = signing.pipeline()
    parts = [signing.signed(key, {pcr: STATEMENT[pcr]}, label=f"web/{pcr}") for pcr in STATEMENT]
    assert codes(policy(signer), NEW_4_9, statements=parts)[0] == "pcr-mismatch"


def test_a_rotation_of_keys() -> None:
    """Both keys count while both are trusted; dropped, the old one counts no more at once."""
    old, old_key = signing.pipeline("old")
    new, new_key = signing.pipeline("new")
    texts = [[signing.signed(key, STATEMENT)] for key in (old_key, new_key)]
    for statements in texts:
        assert judge(policy(old, new), NEW_4_9, statements=statements).signed
    assert codes(policy(new), NEW_4_9, statements=texts[0])[0] == "statement-untrusted"
    assert judge(policy(new), NEW_4_9, statements=texts[1]).signed


def test_what_is_posted_counts_for_machines_that_bring_nothing() -> None:
    """With every check of what is brought."""
    signer, key = signing.pipeline()
    text = signing.signed(key, STATEMENT)
    assert judge(policy(signer, statements=(text,)), NEW_4_9).signed
    other, _ = signing.pipeline("other")
    assert codes(policy(other, statements=(text,)), NEW_4_9)[0] == "statement-untrusted"


@pytest.mark.parametrize(
    "statements", ["x", {}, [None], [["x"]], 1, [{"payload": "x"}], ["x"] * (MAX_STATEMENTS + 1)]
)
def test_statements_that_are_none(statements: object) -> None:
    """As if nothing was there, with a reason; a .pcrsig beside them still counts."""
    signer, key = signing.vendor()
    pcrsig = signing.pcrsig(key, NEW_11[11])
    assert judge(policy(signer), NEW_11, statements=statements, pcrsig=pcrsig).signed
    assert "statement-malformed" in codes(policy(signer), NEW_11, statements=statements)


def test_too_many_statements_or_characters() -> None:
    """Beyond a limit none of them is read, not even the good one."""
    signer, key = signing.pipeline()
    good = signing.signed(key, STATEMENT)
    assert judge(policy(signer), NEW_4_9, statements=["x"] * (MAX_STATEMENTS - 1) + [good]).signed
    assert (
        codes(policy(signer), NEW_4_9, statements=[good] * (MAX_STATEMENTS + 1))[0] == "statement-malformed"
    )
    long = ["x" * (MAX_TOTAL // 4)] * 4
    assert codes(policy(signer), NEW_4_9, statements=[good, *long])[0] == "statement-malformed"


def test_a_limited_state_loses_a_use_only_where_nothing_else_would_do() -> None:
    """Two states hold what nobody signs: the one without limits is taken."""
    signer, key = signing.pipeline()
    once = ReferenceState("once", BASE, "observed", limits=StateLimits(uses_left=1), created_at=NOW)
    judging = policy(signer)
    judging = replace(judging, states=(once, *judging.states))
    assert judge(judging, NEW_4_9, statements=[signing.signed(key, STATEMENT)]).label == "before"


def test_a_state_that_does_not_count_holds_nothing() -> None:
    """Retired, for another device, expired."""
    signer, key = signing.pipeline()
    [state] = policy(signer).states
    for broken in (
        replace(state, life=Life.RETIRED),
        replace(state, limits=StateLimits(device="e")),
        replace(state, limits=StateLimits(expires_at=NOW)),
    ):
        judging = replace(policy(signer), states=(broken,))
        assert codes(judging, NEW_4_9, statements=[signing.signed(key, STATEMENT)])[0] == "policy-empty"


@given(st.sets(st.sampled_from(SELECTION.pcrs)), st.sets(st.sampled_from((4, 9, 11)), min_size=1))
def test_nothing_but_the_scope_may_differ(changed: set[int], scope: set[int]) -> None:
    """A quote passes exactly if all that changed was signed."""
    signer, key = signing.pipeline(pcrs=tuple(sorted(scope)))
    values = {pcr: b"\xcc" * 32 if pcr in changed else value for pcr, value in BASE.items()}
    text = signing.signed(key, {pcr: values[pcr] for pcr in scope})
    if changed <= scope:
        state = judge(policy(signer), values, statements=[text])
        assert bool(state.signed) == bool(changed)
    else:
        refused = codes(policy(signer), values, statements=[text])[0]
        assert refused == ("capped" if changed - scope == {15} else "pcr-mismatch")


def test_a_running_system_is_told_that_it_is_capped() -> None:
    """It still has the statement of its boot, and only the cap is in the way."""
    signer, key = signing.pipeline()
    capped = NEW_4_9 | {15: b"\xca" * 32}
    assert codes(policy(signer), capped, statements=[signing.signed(key, STATEMENT)])[0] == "capped"


# --- signers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pcrs", [(), (7,), (4, 7), (15,), (4, 15), (5,), (9, 4), (4, 4)])
def test_a_scope_that_no_signer_gets(pcrs: tuple[int, ...]) -> None:
    """None, PCR 7, the cap, and PCRs that are not quoted."""
    signer, _ = signing.pipeline(pcrs=pcrs)
    with pytest.raises(Malformed) as error:
        check_signer(signer, SELECTION, 15)
    assert error.value.code == "signer-unsuitable"


def test_a_pcrsig_signer_gets_pcr_11_alone() -> None:
    """In the bank sha256, and without versions."""
    signer, _ = signing.vendor()
    assert check_signer(signer, SELECTION, 15) is signer
    for changes in ({"pcrs": (4,)}, {"pcrs": (4, 11)}, {"no_rollback": True}):
        with pytest.raises(Malformed):
            check_signer(replace(signer, **changes), SELECTION, 15)
    with pytest.raises(Malformed):
        check_signer(signer, Selection("sha384", SELECTION.pcrs), 15)


@pytest.mark.parametrize(
    ("selection", "secure_boot", "safe"),
    [
        ("sha256:11,15", True, False),
        ("sha256:7,11,15", False, False),
        ("sha256:7,11,15", True, True),
        ("sha256:0,2,11,15", True, False),
        ("sha256:4,11,15", False, True),
    ],
)
def test_pcr_11_alone_proves_nothing(selection: str, secure_boot: bool, safe: bool) -> None:
    """Any program can extend it to a signed value, unless the policy pins the program that measures."""
    signer, _ = signing.vendor()
    reason = unpinned(signer, Selection.parse(selection), secure_boot=secure_boot)
    assert (reason is None) == safe
    assert reason is None or reason.code == "signer-unsafe"


def test_values_that_the_firmware_measures_pin_themselves() -> None:
    """PCR 4 cannot be led to a signed value by a program that the firmware measured there itself."""
    signer, _ = signing.pipeline(pcrs=(4,))
    assert unpinned(signer, Selection.parse("sha256:4,15"), secure_boot=False) is None


def test_families_have_a_limit() -> None:
    """A signer that invents families fills no database."""
    signer, key = signing.pipeline()
    signers = Signers((signer,))
    for number in range(MAX_FAMILIES):
        signers = signers.raised(vouched(signer, f"f{number}/1", 1), NOW)
    judging = replace(policy(), signers=signers)
    text = signing.signed(key, STATEMENT, label="one-more/1")
    assert codes(judging, NEW_4_9, statements=[text])[0] == "statement-out-of-scope"
    assert judge(judging, NEW_4_9, statements=[signing.signed(key, STATEMENT, label="f0/1")]).signed


def test_signers_are_stored_as_they_are() -> None:
    """JSON and back."""
    signer, _ = signing.pipeline(label="web", no_rollback=True)
    vendor, _ = signing.vendor()
    stored = replace(_permitted(signer, 7), retired=("web/1",), statements=("x",))
    stored = stored.with_signer(vendor)
    assert load_signers(stored.as_json()) == stored
    assert load_signers(None) == Signers()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1(), ec.SECP256K1()])
def test_other_curves_are_no_signers(curve: ec.EllipticCurve) -> None:
    """P-256 and Ed25519 sign statements."""
    with pytest.raises(Malformed) as error:
        keys.read_key(signing.public_pem(ec.generate_private_key(curve)))
    assert error.value.code == "signer-unsuitable"


def test_a_private_key_is_not_taken() -> None:
    """The server has no use for it, and it must not lie around there."""
    with pytest.raises(Malformed, match="private key"):
        keys.read_key(signing.private_pem(ec.generate_private_key(ec.SECP256R1())))


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key(pem: bytes) -> None:
    """One code, whatever it is."""
    with pytest.raises(Malformed) as error:
        keys.read_key(pem)
    assert error.value.code == "signer-unsuitable"


def test_a_file_that_is_too_large() -> None:
    """Before it is parsed."""
    with pytest.raises(Malformed, match="bytes"):
        keys.read_key(b"x" * (keys.MAX_KEY + 1))
