"""The tables.  ``migrations`` makes them; a test compares the two.

* Every compare-and-set of the store has its unique constraint or its nullable column here.
* The audit names devices by name, without a foreign key: it outlives them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from tang_attest.store.database.types import (
    BIG,
    Instant,
    JsonText,
    PcrText,
    RulesText,
    SelectionText,
    SignersText,
    Unsigned64,
)

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _seal() -> sa.Column[bytes]:
    """Return the column of the row's seal (authentic.py); NULL: the row has none."""
    return sa.Column("seal", sa.LargeBinary)


policy: Final = sa.Table(
    "policy",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("selection", SelectionText, nullable=False),
    sa.Column("cap_pcr", sa.Integer, nullable=False),
    # The device whose enrollment recorded this policy; the policy goes when that device goes.
    sa.Column("recorded_for", sa.Text),
    sa.Column("trust_predictions", sa.Boolean, nullable=False, server_default="0"),
    # A list of rules over the event log (protocol/rules.py); NULL: exact values only.
    sa.Column("rules", RulesText),
    # protocol/conditions.py; NULL: none.
    sa.Column("conditions", JsonText),
    # protocol/signed_values/signer.py; NULL: none.
    sa.Column("signers", SignersText),
    _seal(),
)

reference_state: Final = sa.Table(
    "reference_state",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("policy_id", BIG, sa.ForeignKey("policy.id"), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("pcr_values", PcrText, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("life", sa.Text, nullable=False, server_default="active"),
    # NULL: for every device, for good, without a limit of uses, outside of rollouts.
    sa.Column("device", sa.Text),
    sa.Column("expires_at", Instant),
    sa.Column("uses_left", sa.Integer),
    sa.Column("rollout", sa.Text),
    sa.Column("created_at", Instant),
    sa.Column("created_by", sa.Text),
    sa.Column("notes", JsonText),
    # A list of parts of the boot that nothing covers, which the operator accepted; NULL: none.
    sa.Column("accepted_uncovered", JsonText),
    _seal(),
    sa.UniqueConstraint("policy_id", "label"),
)

device: Final = sa.Table(
    "device",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("policy_id", BIG, sa.ForeignKey("policy.id"), nullable=False, index=True),
    sa.Column("ak_public", sa.LargeBinary, nullable=False),
    sa.Column("ak_name", sa.LargeBinary, nullable=False),
    # One AK, one EK: one device.  NULLs (no EK known) do not collide.  See shared_ak_spki.
    sa.Column("ak_spki", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("ak_scheme", sa.Text, nullable=False),
    sa.Column("ak_hash", sa.Text, nullable=False),
    sa.Column("ek_spki", sa.LargeBinary, unique=True),
    sa.Column("ek_certificate", sa.LargeBinary),
    sa.Column("ek_verified", sa.Boolean, nullable=False),
    sa.Column("ek_issuer", sa.Text),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("enrolled_at", Instant, nullable=False),
    # TPMS_CLOCK_INFO of the newest evidence; all four are NULL until there is some.
    sa.Column("clock", Unsigned64),
    sa.Column("reset_count", sa.BigInteger),
    sa.Column("restart_count", sa.BigInteger),
    sa.Column("opened_reset_count", sa.BigInteger),
    sa.Column("clock_safe", sa.Boolean),
    # {"until": ISO 8601, "stable": {PCR: hex}}, NULL unless armed.
    sa.Column("learning", JsonText),
    # The reset counter of the boot whose state was learned: that boot opens nothing.
    sa.Column("learned_reset_count", sa.BigInteger),
    sa.Column("last_seen_at", Instant),
    sa.Column("last_code", sa.Text),
    # The label of the reference state that the last permitted unlock met.
    sa.Column("last_state", sa.Text),
    # The signed state that took part in it (protocol/signed_values/signed_state.py); NULL: none did.
    sa.Column("signed", JsonText),
    # A list of words that rollouts and listings choose by.
    sa.Column("labels", JsonText, nullable=False, server_default="[]"),
    # {"grade": ..., "reasons": [...]} of protocol/grade.py; NULL until evidence was graded.
    sa.Column("grade", JsonText),
    # SHA-256 over the contents of the row in `evidence`: most boots are like the one before, and write
    # nothing there.
    sa.Column("evidence_digest", sa.LargeBinary),
    # The name of the policy for the running system; NULL: derived from that of the boot.
    sa.Column("running_policy", sa.Text),
    # A TPM that the operator's machine can ask itself.
    sa.Column("tcti", sa.Text),
    sa.Column("ak_handle", sa.Text),
    # All three or none: while they are set, every use of its keys is refused.
    sa.Column("suspended_at", Instant),
    sa.Column("suspended_by", sa.Text),
    sa.Column("suspended_reason", sa.Text),
    sa.Column("allowed_until", Instant),
    # Status of the verification of the running system (ports.machines.VerificationStatus).
    sa.Column("outcome", sa.Text),
    sa.Column("outcome_code", sa.Text),
    sa.Column("outcome_since", Instant),
    sa.Column("answered_at", Instant),
    sa.Column("verified_at", Instant),
    sa.Column("wanted_at", Instant, index=True),
    # The last statement of the running system about its disks (ports.machines.OpenedReport): {"at",
    # "reset_count", "texts", "because"}.
    sa.Column("told", JsonText),
    # The AK of a device without an exchange key, which several such devices may share; NULL: `ak_spki` has
    # it.
    sa.Column("shared_ak_spki", sa.LargeBinary, index=True),
    _seal(),
    sqlite_autoincrement=True,  # an id is never used again: a decision under way must not meet another device
)

#: Conditions of the partial indexes of devices and states that want a person; see store/attention.py.
REFUSED_BOOT: Final[sa.ColumnElement[bool]] = sa.and_(
    device.c.last_code.is_not(None), device.c.last_code != sa.literal_column("'ok'")
)
SUSPENDED: Final[sa.ColumnElement[bool]] = device.c.suspended_at.is_not(None)
UNWELL: Final[sa.ColumnElement[bool]] = sa.and_(
    device.c.outcome.is_not(None), device.c.outcome != sa.literal_column("'verified'")
)
PROPOSED: Final[sa.ColumnElement[bool]] = reference_state.c.life == sa.literal_column("'proposed'")


for _name, _column, _where in (
    ("ix_device_refused", device.c.last_seen_at, REFUSED_BOOT),
    ("ix_device_suspended", device.c.suspended_at, SUSPENDED),
    ("ix_device_unwell", device.c.outcome_since, UNWELL),
    ("ix_reference_state_proposed", reference_state.c.created_at, PROPOSED),
):
    sa.Index(_name, _column, sqlite_where=_where, postgresql_where=_where)
# PostgreSQL's indexes of the names sort by the locale, where a beginning is no range.
for _named in (device, policy):
    sa.Index(f"ix_{_named.name}_name_bytes", _named.c.name, postgresql_ops={"name": "text_pattern_ops"})
sa.Index("ix_device_policy_id_last_state", device.c.policy_id, device.c.last_state, device.c.name)

sealed_key: Final = sa.Table(
    "sealed_key",
    metadata,
    sa.Column("kid", sa.Text, primary_key=True),
    sa.Column("use", sa.Text, nullable=False),
    sa.Column("curve", sa.Text, nullable=False),
    sa.Column("public", JsonText, nullable=False),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("rotated_at", Instant),
    sa.Column("device_id", BIG, sa.ForeignKey("device.id"), index=True),
    # It answers no more: the key of a device is refused, and a key of no device is as if it were not here.
    sa.Column("retired_at", Instant),
    _seal(),
)

token: Final = sa.Table(
    "token",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("policy", sa.Text),
    sa.Column("record", sa.Boolean, nullable=False),
    sa.Column("selection", SelectionText, nullable=False),
    sa.Column("cap_pcr", sa.Integer, nullable=False),
    sa.Column("allow_unverified_ek", sa.Boolean, nullable=False),
    sa.Column("force", sa.Boolean, nullable=False),
    sa.Column("learn_for_s", sa.BigInteger, nullable=False),
    sa.Column("labels", JsonText, nullable=False, server_default="[]"),
    # As in reference_state, for the state that the enrollment records.
    sa.Column("accepted_uncovered", JsonText),
    # True: the selection is proposed from the machine's event log; NULL: it is the one in the row.
    sa.Column("proposes", sa.Boolean),
    # Machines that it may enroll, and those that it has; NULL: it is for one machine.
    sa.Column("machines", sa.Integer),
    sa.Column("uses", sa.Integer),
    # The time of the last use that it has; NULL: it can still be used.
    sa.Column("used_at", Instant),
    sa.Column("revoked_at", Instant),
    _seal(),
)

admin_token: Final = sa.Table(
    "admin_token",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    # Never used again, not even after a revocation: the audit record names tokens.
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", JsonText, nullable=False),
    # A list of names; NULL: every policy.
    sa.Column("policies", JsonText),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    sa.Column("revoked_at", Instant),
    _seal(),
)

nonce: Final = sa.Table(
    "nonce",
    metadata,
    # Only used nonces are here.  The primary key decides which use was first.
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("expires_at", Instant, nullable=False, index=True),
)

observation: Final = sa.Table(
    "observation",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("device_id", BIG, sa.ForeignKey("device.id"), nullable=False, index=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("selection", SelectionText, nullable=False),
    sa.Column("pcr_values", PcrText, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("reset_count", sa.BigInteger, nullable=False),
    sa.Column("event_log", sa.LargeBinary, nullable=False),
    _seal(),
    sqlite_autoincrement=True,
)

evidence: Final = sa.Table(
    "evidence",
    metadata,
    # Last evidence of each device's initrd: policies are tried on it before they count.
    sa.Column("device_id", BIG, sa.ForeignKey("device.id"), primary_key=True, autoincrement=False),
    # The last that was permitted, and the last that was refused: the one explains the other.
    sa.Column("permitted", sa.Boolean, primary_key=True, autoincrement=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("selection", SelectionText, nullable=False),
    sa.Column("pcr_values", PcrText, nullable=False),
    sa.Column("event_log", sa.LargeBinary, nullable=False),
    _seal(),
)

rollout: Final = sa.Table(
    "rollout",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("policy_id", BIG, sa.ForeignKey("policy.id"), nullable=False),
    # The policy's id until the rollout is over, then NULL: a policy has one at a time.
    sa.Column("under_way", BIG, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    # PolicyChange.dump() of protocol/changes/change.py.
    sa.Column("change", JsonText, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("share", sa.Integer, nullable=False),
    sa.Column("label", sa.Text),
    sa.Column("refusal_limit", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("started_by", sa.Text, nullable=False),
    sa.Column("ended_at", Instant),
    sa.Column("ended_by", sa.Text),
    sa.Column("why", sa.Text),
    _seal(),
    sa.UniqueConstraint("policy_id", "name"),
)

rollout_device: Final = sa.Table(
    "rollout_device",
    metadata,
    # Devices that passed with the change or were refused; the primary key counts a device once.
    sa.Column("rollout_id", BIG, sa.ForeignKey("rollout.id"), primary_key=True, autoincrement=False),
    sa.Column(
        "device_id", BIG, sa.ForeignKey("device.id"), primary_key=True, autoincrement=False, index=True
    ),
    sa.Column("outcome", sa.Text, nullable=False),
    # The state that permitted, or why the policy refused.
    sa.Column("about", sa.Text, nullable=False),
    sa.Column("at", Instant, nullable=False),
    _seal(),
)

#: Condition of a partial index, as those of devices above.
STOPPED: Final[sa.ColumnElement[bool]] = sa.and_(
    rollout.c.under_way.is_not(None), rollout.c.status == sa.literal_column("'stopped'")
)
sa.Index("ix_rollout_stopped", rollout.c.under_way, sqlite_where=STOPPED, postgresql_where=STOPPED)
sa.Index("ix_rollout_device_outcome", rollout_device.c.rollout_id, rollout_device.c.outcome)

verification: Final = sa.Table(
    "verification",
    metadata,
    # Appended only: when a device's outcome or its code changes, and when an operator asked.  It outlives the
    # device.
    sa.Column("id", BIG, primary_key=True),
    sa.Column("device", sa.Text, nullable=False, index=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("details", JsonText, nullable=False),
    sqlite_autoincrement=True,
)

notification: Final = sa.Table(
    "notification",
    metadata,
    # Receivers of a notification; its sender deletes the row first.
    sa.Column("id", BIG, primary_key=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("body", JsonText, nullable=False),
    _seal(),
    sqlite_autoincrement=True,
)

ima_requirement: Final = sa.Table(
    "ima_requirement",
    metadata,
    # SHA-256 over the document (protocol/ima/requirement.py): a document never changes, so it can be kept
    # ready.
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("document", JsonText, nullable=False),
    _seal(),
)

ima_progress: Final = sa.Table(
    "ima_progress",
    metadata,
    # Progress through the list of this boot, and its findings (protocol/ima/progress.py).
    sa.Column("device_id", BIG, sa.ForeignKey("device.id"), primary_key=True, autoincrement=False),
    sa.Column("progress", JsonText, nullable=False),
    _seal(),
)

ek_root: Final = sa.Table(
    "ek_root",
    metadata,
    sa.Column("fingerprint", sa.Text, primary_key=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("der", sa.LargeBinary, nullable=False),
    sa.Column("added_at", Instant, nullable=False),
    # The digest of the certificate's subject, by which issuers are looked up; NULL: looked at every time.
    sa.Column("subject", sa.LargeBinary, index=True),
    _seal(),
)

registered_ek: Final = sa.Table(
    "registered_ek",
    metadata,
    # EKs whose machines an operator expects: SHA-256 of the DER SubjectPublicKeyInfo.
    sa.Column("ek_sha256", sa.LargeBinary, primary_key=True),
    # The only name under which it enrolls; no other TPM takes it meanwhile.
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("labels", JsonText, nullable=False),
    sa.Column("without_token", sa.Boolean, nullable=False),
    sa.Column("added_at", Instant, nullable=False),
    sa.Column("added_by", sa.Text, nullable=False),
    # A registration is good for one enrollment; the row stays, so that a list can be registered again.
    sa.Column("used_at", Instant),
    _seal(),
)

operator: Final = sa.Table(
    "operator",
    metadata,
    # Operators of the console.  A removed one stays, so that nobody gets the name again.
    sa.Column("name", sa.Text, primary_key=True),
    # WebAuthn's user.id: random, so that it says nothing about the person.
    sa.Column("handle", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("removed_at", Instant),
    _seal(),
)

operator_link: Final = sa.Table(
    "operator_link",
    metadata,
    # One-time links that register a passkey: SHA-256 of their text.
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("operator", sa.Text, nullable=False, index=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    # Used, or withdrawn by a newer one.
    sa.Column("used_at", Instant),
    _seal(),
)

passkey: Final = sa.Table(
    "passkey",
    metadata,
    # A revoked one stays: it verifies the records of what it signed.
    sa.Column("credential_id", sa.LargeBinary, primary_key=True),
    sa.Column("operator", sa.Text, nullable=False, index=True),
    # COSE_Key (RFC 9052).
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("sign_count", sa.BigInteger, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("revoked_at", Instant),
    _seal(),
)

operator_session: Final = sa.Table(
    "operator_session",
    metadata,
    # SHA-256 of the secret in the cookie.
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("operator", sa.Text, nullable=False, index=True),
    # SHA-256 of the challenge of the sign-in: an assertion opens one session.
    sa.Column("challenge", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("used_at", Instant, nullable=False),
    sa.Column("ended_at", Instant),
    _seal(),
)

act_request: Final = sa.Table(
    "act_request",
    metadata,
    # Acts that wait for an operator's signature, or had it.
    sa.Column("number", sa.Text, primary_key=True),
    sa.Column("operator", sa.Text, nullable=False),
    sa.Column("session", sa.LargeBinary, nullable=False),
    sa.Column("act", JsonText, nullable=False),
    # The text that is signed (protocol/passkeys/text.py).
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("used_at", Instant),
    _seal(),
)

pending_approval: Final = sa.Table(
    "pending_approval",
    metadata,
    # Approvals that one operator signed, and that wait for others.
    sa.Column("number", sa.Text, primary_key=True),
    # SHA-256 of the subject that is signed, which is the same for each operator.
    sa.Column("subject", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("act", JsonText, nullable=False),
    sa.Column("needed", sa.Integer, nullable=False),
    # A list of signatures, as the audit record has them.
    sa.Column("signatures", JsonText, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    _seal(),
)

audit: Final = sa.Table(
    "audit",
    metadata,
    sa.Column("id", BIG, primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("device", sa.Text, index=True),
    sa.Column("kid", sa.Text),
    sa.Column("address", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("details", JsonText, nullable=False),
    sqlite_autoincrement=True,  # a row that was taken away leaves a gap
)

#: Conditions of the partial indexes below; a query that repeats one can use its index.
REFUSED_CODE: Final[sa.ColumnElement[bool]] = audit.c.code != sa.literal_column("'ok'")
NO_UNLOCK: Final[sa.ColumnElement[bool]] = audit.c.event != sa.literal_column("'unlock'")

# For searches.  An unlock that is permitted, the most frequent entry, is in the first and in that of devices only.
sa.Index("ix_audit_at", audit.c.at)
sa.Index(
    "ix_audit_code_id", audit.c.code, audit.c.id, sqlite_where=REFUSED_CODE, postgresql_where=REFUSED_CODE
)
sa.Index(
    "ix_audit_event_id",
    audit.c.event,
    audit.c.id,
    sqlite_where=NO_UNLOCK,
    postgresql_where=NO_UNLOCK,
    postgresql_ops={"event": "text_pattern_ops"},  # for first words
)
sa.Index("ix_audit_actor_id", audit.c.actor, audit.c.id, sqlite_where=NO_UNLOCK, postgresql_where=NO_UNLOCK)

notice_cursor: Final = sa.Table(
    "notice_cursor",
    metadata,
    # One row: the entries of the audit record that notices were made of, and the last check of the record.
    sa.Column("place", BIG, primary_key=True, autoincrement=False),
    sa.Column("audit_id", sa.BigInteger, nullable=False),
    sa.Column("checked_at", Instant),
)

notice_group: Final = sa.Table(
    "notice_group",
    metadata,
    # Equal events (ports/notices.py).
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False, index=True),
    sa.Column("body", JsonText, nullable=False),
    # NULL: every event is in a message.
    sa.Column("due_at", Instant, index=True),
    sa.Column("known_until", Instant, nullable=False),
)

delivery: Final = sa.Table(
    "delivery",
    metadata,
    # Messages on their way; a sender moves due_at first, and removes the row when the receiver has it.
    sa.Column("id", BIG, primary_key=True),
    sa.Column("receiver", sa.Text, nullable=False, index=True),
    sa.Column("message", JsonText, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due_at", Instant, nullable=False),
    sqlite_autoincrement=True,
)

audit_archive: Final = sa.Table(
    "audit_archive",
    metadata,
    # Stretches of the record that are in files, by their last seals.  The newest is where the chain goes on.
    sa.Column("seq", BIG, primary_key=True, autoincrement=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("first_id", sa.BigInteger, nullable=False),
    sa.Column("last_id", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("sealed_at", Instant, nullable=False),
    # The file's name when it was made, and the digest of its lines.
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("archived_at", Instant, nullable=False),
    sa.Column("archived_by", sa.Text, nullable=False),
    _seal(),
)

audit_version: Final = sa.Table(
    "audit_version",
    metadata,
    # Versions of rows that archived entries have (authentic.py), as entries list them: [TABLE, KEY, SERIAL, VERSION].
    sa.Column("id", BIG, primary_key=True),
    sa.Column("versions", JsonText, nullable=False),
    _seal(),
    sqlite_autoincrement=True,
)

audit_seal: Final = sa.Table(
    "audit_seal",
    metadata,
    # protocol/audit_chain.py.  The primary key decides which of two servers seals.
    sa.Column("seq", BIG, primary_key=True, autoincrement=False),
    sa.Column("first_id", sa.BigInteger, nullable=False),
    sa.Column("last_id", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("sealed_at", Instant, nullable=False),
)
