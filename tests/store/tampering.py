"""A registry with a row in every table that is sealed, and somebody who writes to its database."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from tang_attest.ports.admin import AdminToken, Scope
from tang_attest.ports.decisions import NewEvidence, RolloutResult, Snapshot
from tang_attest.ports.enrollment import EkRoot
from tang_attest.ports.operators import (
    ActRequest,
    Operator,
    OperatorRole,
    Passkey,
    RegistrationLink,
    StoredApproval,
    StoredSession,
)
from tang_attest.ports.policies import ImaRequirement
from tang_attest.ports.rounds import RoundRecord
from tang_attest.protocol.changes.change import AddedState, PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.signed_values.signer import Signers
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store import SqlStore
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import audit_log
from tests.postgres import Postgres
from tests.protocol.signed_values import signing
from tests.store.samples import (
    NOW,
    SELECTION,
    decision,
    device,
    digest,
    entry,
    key,
    policy,
    registered_ek,
    token,
    values,
)

#: The kid of a machine with every row that can stand behind a key.
KID = "kid-pi-b"
OPEN_KID = "kid-open"
IMA = ImaRequirement("11" * 32, {"ignore": ["/a"]})


async def fill(store: SqlStore) -> None:
    """At least one row in every table that is sealed, for :data:`KID` where that can be."""
    trusted, _ = signing.pipeline(pcrs=(4,))
    signed = replace(policy(), signers=Signers((trusted,), ("old",), ("statement",)))
    await store.policies.add_policy(signed, entry())
    added = await store.devices.add_device(device(), "policy", key(KID), entry())
    await store.devices.add_device(device("pi-c"), "policy", key("kid-pi-c"), entry())
    await store.keys.add_key(key(OPEN_KID), None, entry())
    await store.enrollment.add_token(token(), entry())
    await store.admin_tokens.add_admin_token(admin_token(), entry())
    await fill_operators(store)
    await store.enrollment.register_eks([registered_ek("pi-x")], [entry()])
    await store.enrollment.add_ek_root(EkRoot("ff" * 32, "Vendor", b"der", NOW), entry())
    await store.policies.require_ima("policy", IMA, entry())
    await store.rounds.keep_ima_progress(added.id, {"read": 7})
    new = ReferenceState("new", values("new"), "imported", Life.STAGED, created_at=NOW, created_by="x")
    change = PolicyChange((AddedState("new", values("new")),), (), None)
    started = Rollout(
        policy="policy",
        name="r",
        change=change,
        salt="salt",
        share=10_000,
        label=None,
        limit=1,
        started_at=NOW,
        started_by="operator:test",
    )
    await store.policies.start_rollout(started, [new], entry())
    rollout = await store.policies.get_rollout("policy")
    assert rollout is not None
    shown = Snapshot(SELECTION, values("other"), b"log")
    result = RolloutResult(rollout, RolloutOutcome.PASSED, "new")
    seen = NewEvidence(shown, True)
    await store.decisions.decide(decision(added.id, "n", 1, observation=shown, evidence=seen, rollout=result))
    await store.rounds.record_round(ended(added.id))
    await store._database.write(_note_archive)


async def fill_operators(store: SqlStore) -> None:
    """An operator with a link, a passkey and a session; a request and an approval that wait."""
    operator = Operator(
        name="alice",
        handle=bytes(32),
        role=OperatorRole.APPROVER,
        created_at=NOW,
        created_by="operator:test",
    )
    await store.operators.add_operator(operator, link("link"), entry())
    passkey = Passkey(credential_id=b"id", operator="alice", public_key=b"key", sign_count=0, created_at=NOW)
    await store.operators.add_passkey(digest("link"), passkey, entry())
    session = StoredSession(
        digest=digest("session"), operator="alice", challenge=b"c", created_at=NOW, used_at=NOW
    )
    await store.operators.add_session(session, b"id", 0, entry())
    request = ActRequest(
        number="request", operator="alice", session=b"s", act={"act": "resume"}, text="text", created_at=NOW
    )
    await store.signed_acts.add_request(request)
    approval = StoredApproval(
        number="approval",
        subject=digest("subject"),
        act={"act": "resume"},
        needed=2,
        signatures=[{"operator": "alice"}],
        created_at=NOW,
    )
    await store.signed_acts.save_approval(approval, None, entry())


def link(text: str) -> RegistrationLink:
    return RegistrationLink(digest=digest(text), operator="alice", created_at=NOW, expires_at=NOW)


def _note_archive(connection: sa.Connection) -> None:
    """The note of an archive, as if entries of before had been archived, and the versions that they had."""
    noted = {
        "seq": 1,
        "first_seq": 1,
        "first_id": -1,
        "last_id": -1,
        "rows": 1,
        "hash": bytes(32),
        "sealed_at": NOW,
        "file": "a.gz",
        "sha256": bytes(32),
        "archived_at": NOW,
        "archived_by": "operator:test",
    }
    authentic.insert(connection, tables.audit_archive, noted)
    versions = [["policy", "gone", "ff" * 8, 0]]
    authentic.insert(connection, tables.audit_version, {"versions": versions})
    audit_log.append(connection, entry("audit archive"))


def ended(device_id: int, code: str = "pcr-mismatch") -> RoundRecord:
    """A round that somebody has to be told of."""
    return RoundRecord(
        device_id=device_id,
        at=NOW,
        outcome=RoundOutcome.REFUSED,
        code=code,
        details={},
        notify=("hook:page",),
    )


def admin_token(text: str = "admin") -> AdminToken:
    return AdminToken(
        digest=digest(text),
        name=text,
        scopes=(Scope.READ,),
        policies=None,
        created_at=NOW,
        created_by="operator:test",
        expires_at=NOW,
    )


class Intruder:
    """Writes to the database at *url*, past this program and past foreign keys."""

    def __init__(self, url: str, postgres: Postgres | None) -> None:
        self._url, self._postgres = sa.make_url(url), postgres

    def do(self, *statements: str) -> None:
        """Run *statements* in one transaction."""
        if self._postgres is not None:
            text = "SET session_replication_role = replica; BEGIN; " + "; ".join(statements) + "; COMMIT"
            self._postgres.sql(text, str(self._url.database))
            return
        with closing(sqlite3.connect(str(self._url.database))) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def update(
        self, table: str, keys: Sequence[str], row: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> None:
        """Change the row that is *row*."""
        sets = ", ".join(f"{name} = {self.literal(value)}" for name, value in changes.items())
        where = " AND ".join(f"{name} = {self.literal(row[name])}" for name in keys)
        self.do(f"UPDATE {table} SET {sets} WHERE {where}")  # noqa: S608 - that is the point

    def insert(self, table: str, row: Mapping[str, Any]) -> None:
        """Add a row."""
        values = ", ".join(self.literal(value) for value in row.values())
        self.do(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})")  # noqa: S608 - that is the point

    def literal(self, value: object) -> str:
        """*value* in SQL."""
        if value is None:
            return "NULL"
        if isinstance(value, bool):
            return str(value).upper() if self._postgres else str(int(value))
        if isinstance(value, bytes):
            return f"'\\x{value.hex()}'::bytea" if self._postgres else f"X'{value.hex()}'"
        return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"

    def another(self, value: object, kind: sa.types.TypeEngine[Any]) -> object:
        """Another value for a column of *kind* that holds *value*."""
        impl = kind.impl if isinstance(kind, sa.types.TypeDecorator) else kind
        if isinstance(impl, sa.Boolean):
            return not value
        if isinstance(impl, sa.Integer):
            return 3 if value is None else int(value) + 1000  # type: ignore[call-overload]
        if isinstance(impl, sa.LargeBinary):
            return b"x" + (value if isinstance(value, bytes) else b"")
        return "x" if value is None else f"{value} "
