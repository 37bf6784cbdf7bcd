"""The audit record: search, download, and whether its chain holds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from tang_attest.errors import Conflict
from tang_attest.ports.audit import AuditEntry, AuditSearch
from tang_attest.service.audit.check import AuditCheck
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.forms import malformed
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.text import csv_cell

_SIZE: Final = 50
#: Rows of a download, and of one query for it.
MAX_ROWS: Final = 10_000
_PIECE: Final = 500
_FIELDS: Final = ("device", "event", "actor", "code", "verdict", "since", "until")
_VERDICTS: Final = ("", "permitted", "refused", "done")
_LONGEST: Final = 100
_COLUMNS: Final = ("no", "at", "event", "actor", "verdict", "code", "device", "kid", "address", "request_id")

Row = tuple[int, AuditEntry]


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show a page of the record, newest first.  Raises ``form-malformed``, ``not-found``."""
    return await _show(desk, visit, None)


async def _show(desk: Desk, visit: Visit, check: AuditCheck | None) -> web.Response:
    asked = _asked(visit)
    found = await _read(desk, asked, _SIZE + 1, _number(visit))
    seal = await desk.store.audit.newest_seal()
    unsealed, oldest = await desk.store.audit.unsealed_audit(seal.last_id if seal else None)
    query = {name: value for name, value in asked.items() if value}
    values = {
        **frame(desk, visit, "Audit record"),
        "rows": [(number, entry, _details(entry)) for number, entry in found[:_SIZE]],
        "asked": asked,
        "verdicts": _VERDICTS,
        "next": f"/audit?{urlencode({**query, 'before': found[_SIZE - 1][0]})}"
        if len(found) > _SIZE
        else None,
        "csv": f"/audit.csv?{urlencode(query)}" if query else "/audit.csv",
        "seal": seal,
        "unsealed": unsealed,
        "oldest": oldest,
        "check": check,
    }
    return page("audit.html", values)


async def download(desk: Desk, visit: Visit) -> web.StreamResponse:
    """Send at most :data:`MAX_ROWS` rows as CSV (RFC 4180), newest first."""
    asked = _asked(visit)
    rows = await _read(desk, asked, _PIECE, _number(visit))
    response = web.StreamResponse(
        headers={"Content-Disposition": 'attachment; filename="audit.csv"', "Cache-Control": "no-store"}
    )
    response.content_type, response.charset = "text/csv", "utf-8"
    await response.prepare(visit.request)
    if visit.request.method == "HEAD":
        return response
    await response.write(_csv([[*_COLUMNS, "details"]]))
    sent = 0
    while rows and sent < MAX_ROWS:
        await response.write(_csv([_cells(number, entry) for number, entry in rows]))
        sent += len(rows)
        rows = await _read(desk, asked, min(_PIECE, MAX_ROWS - sent), rows[-1][0]) if sent < MAX_ROWS else []
    return response


async def check(desk: Desk, visit: Visit) -> web.Response:
    """Check the whole record, once at a time.  Raises ``check-runs``."""
    if desk.checking.locked():
        raise Conflict("check-runs", "The audit record is being checked already.")
    async with desk.checking:
        found = await desk.check_audit()
    return await _show(desk, visit, found)


def _asked(visit: Visit) -> dict[str, str]:
    source = visit.request.query
    return {name: source.get(name, "").strip()[:_LONGEST] for name in _FIELDS}


def _number(visit: Visit) -> int | None:
    text = visit.request.query.get("before", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise malformed("A page of the record begins before the number of a row.")
    return int(text)


async def _read(desk: Desk, asked: dict[str, str], limit: int, before: int | None) -> Sequence[Row]:
    verdict = asked["verdict"]
    if verdict not in _VERDICTS:
        raise malformed("There is no such verdict.")
    search = AuditSearch(
        since=_time(asked["since"]),
        until=_time(asked["until"]),
        codes=_some(asked["code"]),
        events=_some(asked["event"]),
        actors=_some(asked["actor"]),
        verdict=verdict or None,
    )
    return await desk.store.audit.list_audit(asked["device"] or None, limit, before, search)


def _some(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise malformed("A time is written like 2026-11-27 or 2026-11-27 08:30, in UTC.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _details(entry: AuditEntry) -> str:
    return json.dumps(dict(entry.details), indent=2, sort_keys=True, default=str) if entry.details else ""


def _cells(number: int, entry: AuditEntry) -> list[object]:
    members = entry.members()
    details = members.pop("details")
    members["at"] = entry.at.isoformat()
    return [number, *(members[name] for name in _COLUMNS[1:]), json.dumps(details, default=str)]


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()
