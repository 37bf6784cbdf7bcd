"""Pages of long lists: a beginning of a name, and the name after which a page starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from urllib.parse import urlencode

from tang_attest.web.console.guard import Visit

#: Rows of one page.
SIZE: Final = 50
_LONGEST: Final = 63

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Listing(Generic[_Item]):
    """One page: its items, the words it was asked for, and the address of the next page, if there is one."""

    items: Sequence[_Item]
    beginning: str
    next: str | None
    first: bool


def asked(visit: Visit) -> tuple[str, str]:
    """Return the name after which the page starts, and the beginning of names."""
    query = visit.request.query
    return query.get("after", "")[:_LONGEST], query.get("name", "").strip()[:_LONGEST]


def listing(visit: Visit, found: Sequence[_Item], names: Sequence[str]) -> Listing[_Item]:
    """Return the page of *found*, which has one row more than a page if there is another; *names* are theirs."""
    after, beginning = asked(visit)
    more = len(found) > SIZE
    query = {"after": names[SIZE - 1] if more else "", **({"name": beginning} if beginning else {})}
    address = f"{visit.request.path}?{urlencode(query)}" if more else None
    return Listing(found[:SIZE], beginning, address, not after)
