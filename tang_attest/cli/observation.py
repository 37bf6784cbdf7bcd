"""``tang-attest observation`` and ``tang-attest approve``."""

from __future__ import annotations

import click

from tang_attest.cli import output
from tang_attest.cli.state import State, run
from tang_attest.ports import Observation
from tang_attest.protocol.policy import ReferencePolicy


@click.group()
def observation() -> None:
    """Authentic evidence that was refused, and can be approved."""


@observation.command("list")
@click.option("--device", help="Only of this machine.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many, newest first."
)
@output.json_option
def list_observations(device: str | None, limit: int, as_json: bool) -> None:
    """List what was refused, newest first, and which PCRs differ from the policy now."""

    async def load(state: State) -> list[tuple[Observation, tuple[int, ...]]]:
        rows = []
        policies: dict[str, ReferencePolicy] = {}
        for entry in await state.store.list_observations(device, limit):
            if entry.device not in policies:
                policies[entry.device] = await state.store.get_policy(
                    (await state.store.get_device(entry.device)).policy
                )
            rows.append((entry, _differences(entry, policies[entry.device])))
        return rows

    rows = run(load)
    if as_json:
        output.print_json([{**_as_json(entry), "differs": list(differs)} for entry, differs in rows])
        return
    output.table(
        ("id", "machine", "when", "code", "selection", "differs in pcr", "reset count"),
        [
            (
                o.id,
                o.device,
                o.at,
                o.code,
                o.selection,
                ", ".join(map(str, differs)) or "nothing",
                o.reset_count,
            )
            for o, differs in rows
        ],
        empty="no observations: nothing authentic was refused",
    )


def _differences(entry: Observation, policy: ReferencePolicy) -> tuple[int, ...]:
    differences = [state.differences(entry.values) for state in policy.states]
    return min(differences, key=len, default=tuple(sorted(entry.values)))


@click.command()
@click.argument("device")
@click.option("--label", help="Name of the new reference state; the time by default.")
@click.option(
    "--observation", "observation_id", type=int, help="The observation to approve; the newest by default."
)
@click.option("--force", is_flag=True, help="Accept a capped state, or a boot that nothing measured.")
def approve(device: str, label: str | None, observation_id: int | None, force: bool) -> None:
    """Accept what DEVICE booted last: its newest refused quote becomes a reference state.

    The disk opens by itself from the next boot on.  States approved before stay valid.
    """
    seen, state = run(
        lambda state: state.reference_values.approve(
            device, label, observation_id=observation_id, force=force
        )
    )
    output.say(
        f"observation {seen.id} of {device}, from {seen.at:%Y-%m-%d %H:%M:%S} UTC, is approved: {state.label}"
    )


def _as_json(entry: Observation) -> dict[str, object]:
    return {
        "id": entry.id,
        "device": entry.device,
        "at": entry.at,
        "code": entry.code,
        "selection": str(entry.selection),
        "values": {str(pcr): value.hex() for pcr, value in sorted(entry.values.items())},
        "reset_count": entry.reset_count,
        "event_log_bytes": len(entry.event_log),
    }
