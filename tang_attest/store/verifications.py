"""Outcomes of rounds: the newest on the device's row, and each change in an append-only table.

Rules of this module:

* Rounds of one batch share a transaction.  Their devices' rows are locked in the order of their ids, so that
  two replicas cannot wait for each other; what is compared and what is written is then one step.
* A round that ends like the one before it, and reports the same about the disks, moves two times on the
  device's row, remembers its evidence for as long as that could be shown again, and writes nothing else,
  unless an operator asked for it.
* A round that was overtaken by newer evidence does not overrule the outcome of that evidence, and notifies no
  one.
* Suspending is part of the same transaction: no unlock comes between a bad round and its consequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound, TangAttestError
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.machines import Device
from tang_attest.ports.rounds import Notification, PastRound, RoundEffect, RoundRecord
from tang_attest.protocol.cap import Opened
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store import locks
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.failures import Tampered
from tang_attest.store.decisions import is_step_back, moves_forward
from tang_attest.store.records import audit_log, devices, nonces

#: A replica's clock may be ahead by as much; a later time was written before the clock was set back.
_AHEAD: Final = timedelta(minutes=1)

_device = tables.device
_key = tables.sealed_key
_verification = tables.verification
_notification = tables.notification
_READ: Final = authentic.PlainForm(_verification)

_SAME_AS_BEFORE = _device.update().where(_device.c.id == sa.bindparam("device_id"))


def write(
    connection: sa.Connection, items: Sequence[RoundRecord]
) -> list[RoundEffect | TangAttestError | None]:
    """Write *items*; return for each its effect, ``None`` (the device is not unreachable after all), or the
    error.
    """
    rows = locks.take_devices(connection, {item.device_id for item in items})
    shown = nonces.used(connection, {item.answer_digest for item in items if item.answer_digest})
    results: list[RoundEffect | TangAttestError | None] = []
    for item in items:
        if item.answer_digest in shown:
            results.append(Conflict("nonce-used", "This evidence was judged before."))
            continue
        results.append(_write_one(connection, rows, item))
        if item.answer_digest is not None and isinstance(results[-1], RoundEffect):
            shown.add(item.answer_digest)
    nonces.use(
        connection,
        [
            (item.answer_digest, item.answer_expires_at)
            for item, result in zip(items, results, strict=True)
            if item.answer_digest is not None
            and item.answer_expires_at is not None
            and isinstance(result, RoundEffect)
        ],
    )
    return results


def _write_one(
    connection: sa.Connection, rows: dict[int, authentic.Row | Tampered], item: RoundRecord
) -> RoundEffect | TangAttestError | None:
    if isinstance(row := rows.get(item.device_id), Tampered):
        return row
    if row is None:
        return NotFound("key-unknown", "The device was removed while its evidence was appraised.")
    if item.clock is None:
        if _answered(row, item):
            return None
    else:
        stored = devices.clock_of(row)
        if is_step_back(stored, item.clock, behind_ms=item.behind_ms):
            return Conflict("clock-backwards", "Newer evidence of this device was accepted meanwhile.")
        if not moves_forward(stored, item.clock):
            item = replace(item, clock=None, told=None)
            if (item.outcome, row["outcome"]) == (RoundOutcome.VERIFIED, RoundOutcome.REFUSED.value):
                return RoundEffect(outcome=False, suspended=False)
    return _write_change(connection, rows, row, item)


def _write_change(
    connection: sa.Connection,
    rows: dict[int, authentic.Row | Tampered],
    row: authentic.Row,
    item: RoundRecord,
) -> RoundEffect:
    """Write how the round of *item* ended; *rows* has the device as it is then."""
    change = RoundEffect(
        (row["outcome"], row["outcome_code"]) != (item.outcome.value, item.code),
        item.suspend is not None and row["suspended_at"] is None,
    )
    columns, asked, news = _columns(item, change), row["wanted_at"] is not None, _news(row, item)
    written = authentic.after(connection, _device, row, columns)
    changed_columns = {name: written[name] for name in (*columns, authentic.SEAL)}
    connection.execute(_SAME_AS_BEFORE.values(changed_columns), {"device_id": item.device_id})
    rows[item.device_id] = written
    name = str(row["name"])
    if change.outcome or asked or news is not None:
        _append(connection, name, item)
    if change.outcome and item.notify:
        body = _notice(name, item, change)
        for action in item.notify:
            authentic.insert(connection, _notification, {"action": action, "body": body})
    if entries := [
        *([_told_of_disks(name, item, news)] if news is not None else []),
        *([_suspended(name, item)] if change.suspended else []),
        *([_silent(name, item)] if change.outcome and item.outcome is RoundOutcome.UNREACHABLE else []),
    ]:
        audit_log.append(connection, *entries)
    return change


def _answered(row: authentic.Row, item: RoundRecord) -> bool:
    """Return True if authentic evidence came while a server found the device silent."""
    answered = row["answered_at"]
    if not isinstance(answered, datetime) or item.silent_since is None:
        return False
    return item.silent_since < answered <= item.at + _AHEAD


def _columns(item: RoundRecord, change: RoundEffect) -> dict[str, object]:
    columns: dict[str, object] = {}
    if item.clock is not None:
        columns |= devices.clock_columns(item.clock)
    if item.outcome is not RoundOutcome.UNREACHABLE:
        columns |= {"answered_at": item.at, "wanted_at": None, "last_seen_at": item.at}
    if item.outcome is RoundOutcome.VERIFIED:
        columns["verified_at"] = item.at
    if change.outcome:
        columns |= {"outcome": item.outcome.value, "outcome_code": item.code, "outcome_since": item.at}
    if change.suspended:
        columns |= devices.suspension_columns(item.suspend)
    if item.told is not None:
        columns["told"] = devices.dump_told(item.told)
    return columns or {"outcome": item.outcome.value}


def _news(row: authentic.Row, item: RoundRecord) -> Opened | None:
    """Return the statement of the round about the disks, where it differs from the one before."""
    if item.told is None:
        return None
    before, now = devices.load_told(row["told"]), item.told.opened
    return None if now.volumes == (before.opened.volumes if before else {}) else now


def _told_of_disks(device: str, item: RoundRecord, opened: Opened) -> AuditEntry:
    return AuditEntry(
        item.at, "device disks", f"device:{device}", "done", device=device, details=opened.as_json()
    )


def _notice(device: str, item: RoundRecord, change: RoundEffect) -> dict[str, object]:
    return {
        "event": "verification",
        "device": device,
        "at": item.at.isoformat(),
        "outcome": item.outcome.value,
        "code": item.code,
        "details": dict(item.details),
        "suspended": change.suspended,
    }


def _append(connection: sa.Connection, device: str, item: RoundRecord) -> None:
    row = {
        "device": device,
        "at": item.at,
        "outcome": item.outcome.value,
        "code": item.code,
        "details": dict(item.details),
    }
    connection.execute(_verification.insert(), row)


def _suspended(device: str, item: RoundRecord) -> AuditEntry:
    assert item.suspend is not None  # noqa: S101 - for the type checker
    details = {"reason": item.suspend.reason, "verification": dict(item.details)}
    return AuditEntry(
        item.at, "device suspend", item.suspend.by, "done", item.code, device=device, details=details
    )


def _silent(device: str, item: RoundRecord) -> AuditEntry:
    return AuditEntry(item.at, "device silent", "server", "done", item.code, device=device)


def wanted(connection: sa.Connection) -> list[str]:
    """The newest kid of each device for which a round was asked."""
    ids = connection.scalars(sa.select(_device.c.id).where(_device.c.wanted_at.is_not(None))).all()
    return [kids[0] for kids in devices.kids_of(connection, ids).values() if kids] if ids else []


def silent(
    connection: sa.Connection, policy: str, before: datetime, now: datetime, limit: int
) -> list[Device]:
    """Return devices of *policy*, not known as unreachable, whose running system gave no evidence since
    *before*.

    Evidence of a later time than *now* is from before the clock was set back, and so from before *before*.
    """
    answered = _device.c.answered_at
    query = (
        sa.select(_device.c.name)
        .join(tables.policy)
        .where(
            tables.policy.c.name == policy,
            sa.or_(answered.is_(None), answered < before, answered > now + _AHEAD),
            sa.or_(_device.c.outcome.is_(None), _device.c.outcome != RoundOutcome.UNREACHABLE.value),
        )
        .order_by(_device.c.id)
        .limit(limit)
    )
    names = connection.scalars(query).all()
    return devices.load(connection, *names) if names else []


def take_notifications(connection: sa.Connection, limit: int) -> list[Notification]:
    """Return the oldest notifications, deleted: of two processes that saw the same row, the one whose DELETE
    met it has it.

    A row without a valid seal is deleted, and not returned.
    """
    query = sa.select(*authentic.form(_notification).raw).order_by(_notification.c.id).limit(limit)
    found = []
    for values in connection.execute(query).all():
        if authentic.delete(connection, _notification, _notification.c.id == values.id) != 1:
            continue
        with suppress(Tampered):  # it is logged and counted
            row = authentic.check(connection, _notification, values)
            found.append(Notification(row["id"], row["action"], row["body"]))
    return found


def newest(connection: sa.Connection, device: str, limit: int) -> list[PastRound]:
    """The newest changes of *device*; none is no error: a removed device keeps its history."""
    query = sa.select(*_READ.raw).where(_verification.c.device == device)
    rows = connection.execute(query.order_by(_verification.c.id.desc()).limit(limit))
    return list(_READ.readable(connection, rows, _past))


def _past(row: Mapping[str, Any]) -> PastRound:
    if not isinstance(row["details"], dict):
        raise ValueError("details")  # noqa: TRY004 - the value is wrong, wherever it came from
    return PastRound(row["device"], row["at"], RoundOutcome(row["outcome"]), row["code"], row["details"])
