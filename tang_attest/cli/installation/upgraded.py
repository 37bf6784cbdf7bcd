"""The result of an upgrade, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tang_attest.cli import output

if TYPE_CHECKING:
    from tang_attest.store import Upgraded


def say_sealed(upgraded: Upgraded) -> None:
    """Report the rows with a first seal: from then on they count as this server's own."""
    if upgraded.sealed:
        output.say(f"{upgraded.sealed} rows are sealed as they are; until now nothing showed who wrote them")
    for row in upgraded.foreign:
        output.say(f"not sealed, because this server did not write it: row '{row.key}' of table {row.table}")


def upgrade_as_json(upgraded: Upgraded) -> dict[str, object]:
    """The result of an upgrade, for programs."""
    foreign = [{"table": row.table, "row": row.key} for row in upgraded.foreign]
    return {
        "before": upgraded.before,
        "after": upgraded.after,
        "sealed": upgraded.sealed,
        "foreign": foreign,
    }
