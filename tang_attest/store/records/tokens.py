"""Enrollment tokens, and the enrollments that use them."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.enrollment import Enrollment, Token
from tang_attest.ports.machines import Device
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import audit_log, devices, eks, evidence, keys, policies

_token = tables.token
_COLUMNS = tuple(field.name for field in fields(Token))


def add(connection: sa.Connection, token: Token) -> None:
    """Add *token*.  Raises ``not-found`` when it names a policy that is not there."""
    if token.policy is not None:
        policies.hold(connection, token.policy)
    if authentic.insert(connection, _token, _to_row(token)) is None:
        raise Conflict("name-taken", "There is this token already.")


def find(connection: sa.Connection, digest: bytes) -> Token | None:
    """The token whose text has this SHA-256."""
    row = authentic.one(connection, _token, _token.c.digest == digest)
    return None if row is None else _from_row(row)


def load(connection: sa.Connection) -> list[Token]:
    """Every token, newest first."""
    newest_first = [_token.c.created_at.desc(), _token.c.digest]
    return [_from_row(row) for row in authentic.load_ours(connection, _token, order_by=newest_first)]


def use(connection: sa.Connection, digest: bytes, at: datetime) -> None:
    """Count a use of the token.

    Raises ``token-used``, ``token-used-up``, ``token-revoked``, and ``token-invalid`` when there is none.
    """

    def counted(row: authentic.Row) -> dict[str, object]:
        if row["machines"] is None:
            return {"used_at": at}
        uses = row["uses"] + 1
        return {"uses": uses, **({"used_at": at} if uses >= row["machines"] else {})}

    # Several enrollments may have found a use left.  The condition is checked again under the row's lock, and
    # the row is read under it, so each use is counted once.
    if authentic.update(connection, _token, _usable(digest), counted) == 1:
        return
    token = find(connection, digest)
    if token is None:
        raise Conflict("token-invalid", "There is no such token.")
    if token.revoked_at is not None:
        raise Conflict("token-revoked", "The token was revoked.")
    raise _spent(token)


def revoke(connection: sa.Connection, digest: bytes, at: datetime) -> None:
    """Revoke a token that can still be used.

    Raises ``token-used``, ``token-used-up``, and ``not-found`` when it is unknown or revoked.
    """
    if authentic.update(connection, _token, _usable(digest), {"revoked_at": at}) == 1:
        return
    token = find(connection, digest)
    if token is None or token.revoked_at is not None:
        raise NotFound("not-found", "There is no such token that is not revoked.")
    if token.machines == 1:
        raise Conflict("token-used", "This token was used before, so there is nothing to revoke.")
    raise _spent(token)


def _spent(token: Token) -> Conflict:
    reason = token.spent
    assert reason is not None, "nothing takes a use back"  # noqa: S101 - a bug
    return Conflict(reason.code, reason.sentence)


def _usable(digest: bytes) -> sa.ColumnElement[bool]:
    return sa.and_(_token.c.digest == digest, _token.c.used_at.is_(None), _token.c.revoked_at.is_(None))


def enroll(connection: sa.Connection, enrollment: Enrollment) -> Device:
    """Everything that one enrollment writes, and the device it made."""
    new = enrollment.device
    at = enrollment.audit.at
    if enrollment.token_digest is not None:
        use(connection, enrollment.token_digest, at)
    eks.check_name(connection, new.name, enrollment.registered_ek)
    if enrollment.new_policy is not None:
        policy_id = policies.add(connection, enrollment.new_policy, recorded_for=new.name)
    else:
        policy_id = policies.find_id(connection, enrollment.policy or "")
    device_id = devices.add(connection, new, policy_id)
    if enrollment.registered_ek is not None:
        eks.use(connection, enrollment.registered_ek, at)
    keys.add(connection, enrollment.key, device_id)
    if enrollment.evidence is not None:
        evidence.keep(connection, device_id, new.enrolled_at, enrollment.evidence)
    audit_log.append(connection, enrollment.audit)
    return devices.get(connection, new.name)


def _to_row(token: Token) -> dict[str, object]:
    return {name: getattr(token, name) for name in _COLUMNS} | {
        "labels": list(token.labels),
        "accepted_uncovered": policies.dump_parts(token.accepted_uncovered),
        "proposes": token.proposes or None,
        "machines": None if token.machines == 1 else token.machines,
        "uses": None if token.machines == 1 else token.uses,
    }


def _from_row(row: authentic.Row) -> Token:
    return Token(
        **{name: row[name] for name in _COLUMNS}
        | {
            "labels": tuple(row["labels"]),
            "accepted_uncovered": policies.load_parts(row["accepted_uncovered"]),
            "proposes": bool(row["proposes"]),
            "machines": row["machines"] or 1,
            "uses": int(row["used_at"] is not None) if row["machines"] is None else row["uses"],
        }
    )
