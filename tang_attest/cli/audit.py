"""``tang-attest audit``."""

from __future__ import annotations

import click

from tang_attest.cli import output
from tang_attest.cli.state import State, run
from tang_attest.ports import AuditEntry


@click.command()
@click.option("--device", help="Only of this machine.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, newest first."
)
@output.json_option
def audit(device: str | None, limit: int, as_json: bool) -> None:
    """Show decisions and changes, newest first: who, when, about whom, and why."""

    async def load(state: State) -> list[tuple[int, AuditEntry]]:
        return list(await state.store.list_audit(device, limit))

    rows = run(load)
    if as_json:
        output.print_json([_as_json(number, entry) for number, entry in rows])
        return
    output.table(
        ("no", "when", "who", "event", "verdict", "code", "machine", "from", "pcrs"),
        [(n, e.at, e.actor, e.event, e.verdict, e.code, e.device, e.address, _pcrs(e)) for n, e in rows],
        empty="nothing is recorded" if device is None else f"nothing is recorded of {device}",
    )


def _pcrs(entry: AuditEntry) -> str | None:
    pcrs = entry.details.get("pcrs")
    return ", ".join(map(str, pcrs)) if isinstance(pcrs, list) else None


def _as_json(number: int, entry: AuditEntry) -> dict[str, object]:
    return {
        "no": number,
        "at": entry.at,
        "event": entry.event,
        "actor": entry.actor,
        "verdict": entry.verdict,
        "code": entry.code,
        "device": entry.device,
        "kid": entry.kid,
        "address": entry.address,
        "request_id": entry.request_id,
        "details": dict(entry.details),
    }
