"""A fleet in every state that the console shows, made by the use cases alone, over twelve days of a clock."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tang_attest.config import Settings
from tang_attest.protocol.audit_chain import KEY_LABEL
from tang_attest.protocol.changes.rollout import place
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.coverage import ENFORCED
from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.compose import Attestation, Installation, World, opened
from tang_attest.server.initialize import initialize
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.enrollment.tokens import TokenTerms
from tang_attest.service.policies.rollouts import RolloutTerms
from tang_attest.service.rounds.polls import Polls
from tests.console.fleet.boots import recorded, with_other_kernel, with_other_words
from tests.console.fleet.machine import Machine, vendor
from tests.fakes import FakeClock, RealRandomness

#: A moment for pictures that are the same whenever they are made.
MORNING: Final = datetime(2026, 11, 27, 8, 30, tzinfo=UTC)
_SELECTION: Final = "sha256:0,2,4,7,8,9,15"
_CAP_PCR: Final = 15
_HISTORY: Final = timedelta(days=12)
#: The share of a rollout, in hundredths of a percent.
_HALF: Final = 5_000

_SERVER: Final = recorded("secure-boot")
_NEW_SERVER: Final = with_other_kernel(_SERVER, "6.1.0-42")
_NEXT_SERVER: Final = with_other_kernel(_SERVER, "6.1.0-43")
_UNKNOWN_SERVER: Final = with_other_kernel(_SERVER, "6.1.0-43 from backports")
#: A person at the machine edited the boot entry.
_SHELL: Final = with_other_words(_SERVER, "no_timer_check", "init=/bin/sh")
_KIOSK: Final = recorded("ovmf")
_NEW_KIOSK: Final = recorded("kernel-changed")

#: Machines by policy, with the boot of each and the label of its state.
_POLICIES: Final = {
    "servers": (("web-1", "web-2", "db-1", "backup-1"), _SERVER, "6.1.0-41"),
    "kiosks": (tuple(f"kiosk-{number}" for number in range(1, 7)), _KIOSK, "image-2026-10"),
    "vault": (("vault-1",), _SERVER, "6.1.0-41"),
    "home": (("nas", "pi-garage"), _KIOSK, "bookworm"),
}


def _reaching_half() -> str:
    """Return a salt with which half of the kiosks, the first three, are in the audience of half of the share."""
    kiosks = _POLICIES["kiosks"][0]
    for number in itertools.count():
        places = [place(f"half-{number}", name) for name in kiosks]
        if [at < _HALF for at in places] == [True] * 3 + [False] * 3:
            return f"half-{number}"
    raise AssertionError("there is always one")


@dataclass
class Fleet:
    """The machines, and the installation whose state directory is *state*."""

    state: Path
    machines: dict[str, Machine] = field(default_factory=dict)

    def copy(self, state: Path) -> Fleet:
        """Return the fleet as it is now over a copy of its installation, which nobody has open."""
        shutil.copytree(self.state, state)
        return Fleet(state, {name: machine.copy() for name, machine in self.machines.items()})


async def make_fleet(state: Path, now: datetime = MORNING) -> Fleet:
    """Make an installation in *state* and let twelve days pass there, until *now*."""
    fleet, clock = Fleet(state), FakeClock()
    clock.time = now - _HISTORY
    settings, world = (
        Settings(state=state),
        World(clock=clock, random=RealRandomness(), operator="ada"),
    )
    await initialize(settings, world)
    async with opened(settings, world) as installation:
        await _Story(fleet, installation, clock, now).tell()
    return fleet


@dataclass
class _Story:
    """The twelve days; a chapter for each state."""

    fleet: Fleet
    installation: Installation
    clock: FakeClock
    now: datetime

    def __post_init__(self) -> None:
        self.attestation: Attestation = self.installation.attestation(Polls())

    async def tell(self) -> None:
        """All of it."""
        await self.installation.ek_roots.add(vendor().pem, "TPM Works")
        for number, policy in enumerate(_POLICIES):
            await self._enroll(policy, number)
        await self._boots_of_days()
        await self._suspended()
        await self._silent()
        await self._announced()
        await self._stopped_rollout()
        await self._refused()
        await self._waiting_for_a_person()
        self.clock.time = self.now
        key = self.installation.secret.derive(KEY_LABEL)
        await AuditSealer(self.installation.store.audit, key, self.clock).round(last=True)

    async def _enroll(self, policy: str, number: int) -> None:
        """Make a policy with the state that its machines boot, and enroll them."""
        names, log, label = _POLICIES[policy]
        values, selection = replay(parse(log), "sha256"), Selection.parse(_SELECTION)
        reference = self.installation.reference_values
        await reference.create_policy(policy, selection, _CAP_PCR)
        known = {pcr: values.get(pcr, bytes(32)) for pcr in selection.pcrs}
        await reference.record(policy, label, known, force=True)
        for index, name in enumerate(names):
            self.clock.advance(minutes=7)
            machine = Machine(name, f"192.0.2.{10 * (number + 1) + index}")
            machine.boot(log)
            await machine.enroll(self.attestation, await self._token(name, policy))
            self.fleet.machines[name] = machine

    async def _token(self, name: str, policy: str) -> str:
        hour = timedelta(hours=1)
        terms = TokenTerms(
            name=name,
            policy=policy,
            record=False,
            selection=Selection.parse(_SELECTION),
            cap_pcr=_CAP_PCR,
            allow_unverified_ek=False,
            force=False,
            valid_for=hour,
            learn_for=hour,
            labels=(f"site={'berlin' if policy in ('servers', 'vault') else 'porto'}",),
            accepted_uncovered=ENFORCED,
        )
        return (await self.installation.tokens.create(terms))[0]

    async def _boots_of_days(self) -> None:
        """Every machine boots on some of the days; a kernel update comes to the servers in the middle."""
        update = 6
        for day in range(1, _HISTORY.days):
            self.clock.time = self.now - _HISTORY + timedelta(days=day)
            for index, (name, machine) in enumerate(self.fleet.machines.items()):
                self.clock.advance(minutes=11)
                if (day + index) % 3:
                    await self._boots(machine, self._log_of(name), "ok")
            if day == update:
                await self._updated("web-1")

    async def _updated(self, name: str) -> None:
        """A machine boots a new kernel, is refused, and is approved on the spot."""
        machine = self.fleet.machines[name]
        await self._boots(machine, _NEW_SERVER, "pcr-mismatch")
        self.clock.advance(minutes=4)
        await self.installation.reference_values.approve(name, "6.1.0-42")
        self.clock.advance(seconds=20)
        await self._tries(machine, "ok")

    def _log_of(self, name: str) -> bytes:
        if name == "web-1" and self.fleet.machines[name].tpm.event_log == _NEW_SERVER:
            return _NEW_SERVER
        return next(log for names, log, _ in _POLICIES.values() if name in names)

    async def _boots(self, machine: Machine, log: bytes, code: str) -> None:
        machine.boot(log)
        await self._tries(machine, code)

    async def _tries(self, machine: Machine, code: str) -> None:
        answer = await machine.unlock(self.attestation)
        assert answer == code, f"{machine.name}: {answer} instead of {code}"

    async def _suspended(self) -> None:
        """A machine was stolen, and asks from another address."""
        self.clock.time = self.now - timedelta(days=1, hours=3)
        await self.installation.devices.suspend("pi-garage", "stolen in the night of the 25th")
        self.clock.advance(hours=20)
        await self._boots(self.fleet.machines["pi-garage"], _KIOSK, "device-suspended")

    async def _silent(self) -> None:
        """A machine that should verify itself each minute does not."""
        await self.installation.conditions.set("home", Conditions(watch=Watch()))
        self.clock.time = since = self.now - timedelta(hours=5)
        self.clock.advance(seconds=200)
        device = await self.installation.store.devices.get_device("nas")
        policy = await self.installation.store.policies.get_policy("home")
        await self.attestation.verify.unreachable(device, policy, since)

    async def _announced(self) -> None:
        """A kernel update on a server announces its next boot."""
        self.clock.time = self.now - timedelta(hours=2)
        await self.fleet.machines["db-1"].announce(
            self.attestation, _NEXT_SERVER, "6.1.0-43", "PCR 9: kernel /boot/vmlinuz-6.1.0-43-amd64"
        )

    async def _stopped_rollout(self) -> None:
        """A new image reaches some kiosks; what they boot is not what was announced, so the rollout stops."""
        self.clock.time = self.now - timedelta(minutes=50)
        values = replay(parse(with_other_kernel(_SERVER, "an image that was never built")), "sha256")
        document = {
            "add": [
                {
                    "label": "image-2026-11",
                    "values": {str(pcr): values.get(pcr, bytes(32)).hex() for pcr in (0, 2, 4, 7, 8, 9, 15)},
                    "accept-uncovered": [part.value for part in ENFORCED],
                }
            ]
        }
        change = await self.installation.policy_changes.parse("kiosks", document)
        terms = RolloutTerms("november", share=_HALF, label=None, limit=2, salt=_reaching_half())
        await self.installation.rollouts.start("kiosks", change, terms)
        for number in (1, 2, 3):
            self.clock.advance(minutes=3)
            await self._boots(self.fleet.machines[f"kiosk-{number}"], _NEW_KIOSK, "pcr-mismatch")

    async def _refused(self) -> None:
        """One server got a new kernel that nobody announced, on another a person edited the command line."""
        self.clock.time = self.now - timedelta(minutes=6)
        await self._boots(self.fleet.machines["backup-1"], _SHELL, "pcr-mismatch")
        self.clock.time = self.now - timedelta(minutes=2)
        await self._boots(self.fleet.machines["web-2"], _UNKNOWN_SERVER, "pcr-mismatch")

    async def _waiting_for_a_person(self) -> None:
        """Every unlock of this machine takes a person."""
        await self.installation.conditions.set("vault", Conditions(approval=True))
        self.clock.time = self.now - timedelta(minutes=1)
        await self._boots(self.fleet.machines["vault-1"], _SERVER, "approval-required")
