"""The store: devices, policies, keys, tokens and the audit record, in SQLite or PostgreSQL."""

from tang_attest.store.database.authentic import KEY_LABEL, Authenticity
from tang_attest.store.database.failures import describe
from tang_attest.store.database.moved import MovedMark, place_of
from tang_attest.store.maintenance.archive_file import Reader
from tang_attest.store.maintenance.audit_archive import Keys as ArchiveKeys
from tang_attest.store.maintenance.audit_archive import Stretch
from tang_attest.store.maintenance.audit_archive import read as read_archive
from tang_attest.store.maintenance.operations import (
    DatabaseStatus,
    Destination,
    SnapshotFile,
    back_up,
    check_rows,
    find_damage,
    look,
    move_out,
    reclaim,
    rekey,
    restore,
    take_out,
    upgrade,
    write_archive,
)
from tang_attest.store.maintenance.rekeying import Side
from tang_attest.store.maintenance.resealing import Upgraded
from tang_attest.store.maintenance.row_check import RowCheck
from tang_attest.store.store import SqlStore, open_store

__all__ = [
    "KEY_LABEL",
    "ArchiveKeys",
    "Authenticity",
    "DatabaseStatus",
    "Destination",
    "MovedMark",
    "Reader",
    "RowCheck",
    "Side",
    "SnapshotFile",
    "SqlStore",
    "Stretch",
    "Upgraded",
    "back_up",
    "check_rows",
    "describe",
    "find_damage",
    "look",
    "move_out",
    "open_store",
    "place_of",
    "read_archive",
    "reclaim",
    "rekey",
    "restore",
    "take_out",
    "upgrade",
    "write_archive",
]
