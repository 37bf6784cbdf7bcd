"""The fleet's story: a kernel update, first with a bad image, then with the right one, then a reboot storm.

A pipeline deploys an image to the machines that a rollout reaches, a few at a time, and looks at the status in between.
Machines that do not come up fall back to the kernel they had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

from tests.simulate.fleet import Fleet, Phase
from tests.simulate.machine import Software, SoftwareMachine
from tests.simulate.operator import POLICY, Operator

#: Refused machines that a rollout may have.
LIMIT: Final = 3
#: Machines that the pipeline deploys to at a time.
WAVE: Final = 5
#: Machines that boot at a time where nobody is in a hurry.
AT_A_TIME: Final = 16

OLD: Final = Software.make("kernel-6.1", kernel="6.1", initrd="6.1")
#: Values of the image that the build pipeline built ...
PREDICTED: Final = Software.make("kernel-6.12", kernel="6.12", initrd="6.12")
#: ... and what is in the image.
BAD: Final = Software.make("kernel-6.12 (bad)", kernel="6.12", initrd="6.12 and something else")
FIXED: Final = Software.make("kernel-6.12-2", kernel="6.12", initrd="6.12-2")


@dataclass
class Story:
    """Told by :meth:`tell`; ``wrong`` has a sentence for everything that was not as expected."""

    fleet: Fleet
    operator: Operator
    say: Callable[[str], None]
    memory: Callable[[], float]
    salt: str
    _: KW_ONLY
    phases: list[Phase] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    memories: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    reached_by_bad: int = 0
    audience_of_bad: int = 0

    def tell(self) -> None:
        """All of it; the machines are enrolled."""
        self._ordinary_boots()
        self._bad_rollout()
        self._good_rollout()
        self._storm()

    def expect(self, holds: bool, sentence: str) -> None:
        """Note *sentence* unless it *holds*."""
        if not holds:
            self.wrong.append(sentence)
            self.say(f"NOT AS EXPECTED: {sentence}")

    # --- the chapters ---

    def _ordinary_boots(self) -> None:
        self.event("boots")
        self._boot("first boots", self.fleet.machines, OLD)

    def _bad_rollout(self) -> None:
        self._start(PREDICTED, "kernel-6.12")
        outsider = self._outside()
        audience = self.audience_of_bad = len(self.operator.status()["waiting"])
        refused: list[Phase] = []
        while (status := self.operator.status())["status"] == "running" and status["waiting"]:
            wave = [self.fleet.by_name[name] for name in status["waiting"][:WAVE]]
            self.reached_by_bad += len(wave)
            refused.append(self._boot("bad image", wave, BAD, code="pcr-mismatch", keep=False))
        self._keep("bad image", refused)
        self.event("stopped")
        self.say(f"the pipeline stops: {status['why']}; it reached {self.reached_by_bad} machines")
        self.expect(
            status["status"] == "stopped" and status["ended_by"] == "server", "the limit stops the rollout"
        )
        self.expect(len(status["refused"]) == LIMIT + 1, f"exactly {LIMIT + 1} refusals are counted")
        self.expect(self.reached_by_bad <= LIMIT + WAVE, "no wave is deployed after the stop")
        self.expect(self.reached_by_bad < audience, "the bad image does not reach the whole audience")
        # Even the image that was announced helps nobody now.
        late = self.fleet.by_name[status["waiting"][0]] if status["waiting"] else outsider
        self._boot("probes", [late, outsider], PREDICTED, code="state-not-rolled-out")
        back = {boot.machine for phase in self.phases for boot in phase.refused}
        self._boot("falling back", [self.fleet.by_name[name] for name in sorted(back)], OLD)
        self.operator.rollout("abandon", "--reason", "the initrd is not the one that was built")
        self.event("abandoned")

    def _good_rollout(self) -> None:
        self._start(FIXED, "kernel-6.12-2")
        self._boot("probes", [self._outside()], FIXED, code="state-not-rolled-out")
        waves = [self._deploy()]
        for share in ("25%" if len(self.fleet.machines) >= 400 else "70%", "100%"):
            self.operator.rollout("widen", "--share", share)
            self.event(share)
            waves.append(self._deploy())
        self._keep("rollout", waves)
        self.operator.rollout("finish")
        self.event("finished")
        status = self.operator.status()
        self.expect(len(status["passed"]) == len(self.fleet.machines), "every machine passed")
        self.expect(not status["refused"], "nobody was refused by the good image")
        self.expect(OLD.name in status["retirable"], "the old kernel is offered for retirement")
        self.operator.run("policy", "retire", POLICY, OLD.name)
        self._boot("probes", [self.fleet.machines[0]], OLD, code="state-retired")

    def _storm(self) -> None:
        self.event("storm")
        self._boot("reboot storm", self.fleet.machines, FIXED, at_a_time=len(self.fleet.machines))

    # --- steps ---

    def event(self, name: str) -> None:
        """Remember that something happens now."""
        self.events.append((self.fleet.elapsed(), name))
        self.memories[name] = self.memory()

    def _start(self, software: Software, name: str) -> None:
        document = software.change()
        told = self.operator.run("policy", "dry-run", POLICY, "--file", "-", document=document)
        self.expect("would refuse none" in told, "a dry run of a new kernel refuses nobody")
        share = "5%" if len(self.fleet.machines) >= 400 else "40%"
        terms = ("--name", name, "--share", share, "--limit", str(LIMIT), "--salt", self.salt)
        self.operator.rollout("start", "--file", "-", *terms, document=document)
        self.event(f"{name} {share}")
        self.say(f"rollout {name} reaches {len(self.operator.status()['waiting'])} machines")

    def _outside(self) -> SoftwareMachine:
        """A machine that the rollout does not reach."""
        inside = set(self.operator.status()["waiting"])
        return next(machine for machine in self.fleet.machines if machine.name not in inside)

    def _deploy(self) -> Phase:
        waiting = self.operator.status()["waiting"]
        self.say(f"the good image goes to {len(waiting)} machines")
        machines = [self.fleet.by_name[name] for name in waiting]
        return self._boot("rollout", machines, FIXED, keep=False)

    def _boot(
        self, name: str, machines: Sequence[SoftwareMachine], software: Software, **options: Any
    ) -> Phase:
        code, keep = options.pop("code", "ok"), options.pop("keep", True)
        phase = self.fleet.boot(name, machines, software, options.pop("at_a_time", AT_A_TIME))
        others = [boot for boot in phase.boots if boot.code != code]
        self.expect(
            not others,
            f"{name}: {len(others)} of {len(phase.boots)} boots do not end with {code}: {others[:3]}",
        )
        if keep:
            self._keep(name, [phase])
        self.memories[name] = self.memory()
        self.say(
            f"{name}: {len(phase.boots)} boots, {len(phase.refused)} refused, {phase.rate:.0f} per second"
        )
        return phase

    def _keep(self, name: str, phases: Sequence[Phase]) -> None:
        """Keep several as one; an earlier one of that name goes on."""
        earlier = [phase for phase in self.phases if phase.name == name]
        every = [*earlier, *phases]
        boots = tuple(boot for phase in every for boot in phase.boots)
        merged = Phase(name, boots, sum(phase.seconds for phase in every))
        self.phases = [phase for phase in self.phases if phase.name != name] + [merged]
