"""The store: :class:`SqlStore` gathers the roles over one database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from tang_attest.ports.store import QueueFigures
from tang_attest.store.database import moved, schema
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.database.engine import AuthenticDatabase, Database, connect, parse_url
from tang_attest.store.maintenance import row_check
from tang_attest.store.maintenance.operations import upgrade
from tang_attest.store.roles.admin_tokens import SqlAdminTokens
from tang_attest.store.roles.attention import SqlAttention
from tang_attest.store.roles.audit import SqlAudit
from tang_attest.store.roles.decisions import SqlDecisions
from tang_attest.store.roles.devices import SqlDevices
from tang_attest.store.roles.enrollment import SqlEnrollment
from tang_attest.store.roles.keys import SqlKeys
from tang_attest.store.roles.notices import SqlNotices
from tang_attest.store.roles.operators import SqlOperators
from tang_attest.store.roles.policies import SqlPolicies
from tang_attest.store.roles.rounds import SqlRounds
from tang_attest.store.roles.signed_acts import SqlSignedActs
from tang_attest.store.roles.writes import WriteQueue


async def open_store(url: str, key: bytes, *, create: bool = False) -> SqlStore:
    """Open the store in the database at *url* (``sqlite:///PATH``, ``postgresql://...``).

    *key* (32 bytes, of the server's secret under :data:`tang_attest.store.database.authentic.KEY_LABEL`)
    seals rows and checks their seals.  With *create* the database is made.  Raises ``state-missing`` when
    there is none, ``schema-old``, ``schema-new``, ``database-moved``, ``setting-invalid`` (the URL, or a
    server that does not flush).
    """
    if create:
        await upgrade(url, key)
    authenticity = Authenticity(key)
    database = AuthenticDatabase(connect(parse_url(url)), authenticity)
    try:
        await database.read(lambda connection: _check(connection, authenticity))
    except BaseException:
        await database.close()
        raise
    return SqlStore(database, authenticity)


def _check(connection: sa.Connection, authenticity: Authenticity) -> None:
    moved.refuse(connection, authenticity)
    schema.check(connection)


class SqlStore:
    """:class:`tang_attest.ports.store.Store` over SQLAlchemy Core."""

    def __init__(self, database: Database, authenticity: Authenticity) -> None:
        self._database, self._authenticity = database, authenticity
        self._writes = WriteQueue(database)
        self.admin_tokens = SqlAdminTokens(database)
        self.attention = SqlAttention(database)
        self.audit = SqlAudit(database, self._writes)
        self.decisions = SqlDecisions(database, self._writes)
        self.devices = SqlDevices(database)
        self.enrollment = SqlEnrollment(database)
        self.keys = SqlKeys(database)
        self.notices = SqlNotices(database)
        self.operators = SqlOperators(database)
        self.policies = SqlPolicies(database)
        self.rounds = SqlRounds(database)
        self.signed_acts = SqlSignedActs(database)

    async def check(self) -> None:
        """Raise ``unavailable``, ``schema-old``, ``schema-new``, ``database-moved`` when it cannot be used."""
        await self._database.read(lambda connection: _check(connection, self._authenticity))

    def queues(self) -> Mapping[str, QueueFigures]:
        """Return the figures of each queue, by name."""
        return {
            "find": self.decisions.finds.figures(),
            "keys": self.keys.loads.figures(),
            "write": self._writes.figures(),
            "verify": self.rounds.ends.figures(),
        }

    def tampered(self) -> Mapping[str, int]:
        """Count the reads of rows that this server did not write, by table; every table is there."""
        return self._authenticity.found()

    def foreign_rows(self) -> Sequence[str]:
        """Return sentences on rows that were read lately and that this server did not write."""
        return self._authenticity.sentences()

    async def remember_versions(self) -> int:
        """From now on refuse rows that are older than the audit record says; return the number of rows that
        it names.

        Reads the whole record, in pages.
        """
        after: int | None = None
        count = 0
        while page := await self._database.read(
            lambda connection, after=after: row_check.page_of(connection, after)  # type: ignore[misc]
        ):
            for serial, row in row_check.read_page(page).items():
                self._authenticity.saw(bytes.fromhex(serial), row.version)
                count += 1
            after = page[-1].id
        # The last, so that entries which are archived meanwhile are missed nowhere.
        known = await self._database.read(row_check.authentic_archived)
        for serial, row in known.items():
            self._authenticity.saw(bytes.fromhex(serial), row.version)
        return count + len(known)

    async def close(self) -> None:
        """Finish pending work and release the database."""
        await self.decisions.finds.close()
        await self.keys.loads.close()
        await self._writes.close()
        await self.rounds.ends.close()
        await self._database.close()
