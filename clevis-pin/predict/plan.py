"""A prediction while it is made: which events change, which PCRs are not understood, and what follows from
that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Final

from predict import measured, pe
from predict.files import MachineFiles, is_file
from predict.measured import Kind, Loader, Measurements
from predict.sentences import Unpredictable
from predict.text import of_path, plain
from tang_attest.protocol.eventlog.constants import OS_SEPARATOR, OS_SEPARATOR_PCRS, PHASES
from tang_attest.protocol.eventlog.replay import initial_value, replay
from tang_attest.protocol.eventlog.structures import Event, EventLog

_INITRD_PHASE: Final = PHASES[0]
_AFTER_INITRD: Final = PHASES[2:]
_PHASE_PCR: Final = 11
_EXTENDERS: Final = {
    10: "IMA extends it",
    11: "something other than systemd-pcrphase extended it",
}


@dataclass
class Target:
    """Everything known of the software that is started next; empty where nobody said."""

    kernel: Path | None = None
    initrds: list[Path] = field(default_factory=list)
    options: str = ""
    uki: Path | None = None
    #: The names of the initrds in the boot loader's entry.
    initrd_names: list[str] = field(default_factory=list)
    _: KW_ONLY
    entry: Path | None = None
    #: GRUB's: the new kernel's file and command line.
    grub_line: str = ""

    @property
    def given(self) -> bool:
        """Tell that the caller named a kernel, an initrd or a command line."""
        return bool(self.kernel or self.initrds or self.options)


@dataclass(frozen=True, slots=True)
class PredictedPcr:
    """One PCR of the next boot: its *value* or the sentence *unpredictable*, and what *changed* it."""

    pcr: int
    value: bytes | None
    changed: str = ""
    unpredictable: str = ""


class Plan:
    """The log of the next boot, as far as it is known.

    *log* is the log of this boot in *bank*, *files* are those of the next one, *command_line* is
    /proc/cmdline.
    """

    def __init__(self, log: EventLog, files: MachineFiles, target: Target, command_line: str) -> None:
        self.log = log
        self.bank = files.bank
        self.files = files
        self.target = target
        self.command_line = command_line
        self.notes: list[str] = []
        self.changed: dict[int, str] = {}
        self.unpredictable: dict[int, str] = {}
        self._next: dict[int, Sequence[bytes]] = {}
        self.measured: Measurements = measured.classify(log, lambda data: files.hash([data]), self.bank)
        for pcr, sentence in self.measured.unknown:
            self.give_up(pcr, sentence)

    # --- what predictors say --------------------------------------------------------------------------------

    def give_up(self, pcr: int, sentence: str) -> None:
        """Let *pcr* be unpredictable; the first reason is kept."""
        self.unpredictable.setdefault(pcr, plain(sentence))

    def give_up_events(self, events: Iterable[Event], sentence: str) -> None:
        """Let the PCRs of *events* be unpredictable."""
        for event in events:
            self.give_up(event.pcr, sentence)

    def exchange(self, event: Event, digest: bytes, what: str) -> None:
        """Let the next boot extend *digest* instead of *event*'s, because of *what*."""
        if digest != self.digest(event):
            self.replace(event, (digest,), what)

    def replace(self, event: Event, digests: Sequence[bytes], what: str) -> None:
        """Let the next boot extend *digests* instead of *event*'s, because of *what*."""
        self._next[event.index] = digests
        shown, before = plain(what, 240), self.changed.get(event.pcr, "")
        if shown not in before:
            self.changed[event.pcr] = f"{before}; {shown}" if before else shown

    def drop(self, events: Iterable[Event]) -> None:
        """Let the next boot lack *events*."""
        for event in events:
            self._next[event.index] = ()

    # --- what predictors ask --------------------------------------------------------------------------------

    def digest(self, event: Event) -> bytes:
        """Return the digest of *event* in this boot."""
        return event.digests[self.bank]

    def next_digests(self, event: Event) -> Sequence[bytes]:
        """Return the digests of *event* in the next boot, as far as they were exchanged."""
        return self._next.get(event.index, (self.digest(event),))

    def image(self, path: Path) -> pe.Image:
        """Return the PE image in *path*.  Raises :class:`Unpredictable` if it is none."""
        not_one = Unpredictable(f"{of_path(path)} is not an EFI image")
        if not is_file(path):
            raise not_one
        try:
            size = path.stat().st_size
            return pe.parse(pe.Window(lambda: path.open("rb"), 0, size, size))
        except (OSError, pe.NotAnImage) as error:
            raise not_one from error

    def image_digest(self, path: Path) -> bytes:
        """Return the Authenticode digest of *path*.  Raises :class:`Unpredictable` if it is no image."""
        try:
            return self.files.hash(self.image(path).authenticode())
        except OSError as error:
            raise Unpredictable(f"cannot read {of_path(path)}") from error

    # --- predictors of more than one way to boot ------------------------------------------------------------

    def boot_loaders(self, events: Iterable[Event]) -> None:
        """Predict images that are no kernel (shim, boot loaders, drivers) by what their files are now."""
        for event in events:
            name = measured.image_path(event)
            if not name:
                self.give_up(4, f"event {event.index} is an image from memory or a device, not from a file")
                continue
            path = self.files.esp_file(name)
            if path is None:
                self.give_up(4, f"{name} is not there; is the EFI system partition mounted?")
                continue
            try:
                self.exchange(event, self.image_digest(path), f"boot loader {self.files.shown(path)}")
            except Unpredictable as reason:
                self.give_up(4, str(reason))

    def loader_conf(self) -> None:
        """Predict loader.conf, which newer systemd-boot measures."""
        for event in self.measured.of(Kind.LOADER_CONF):
            path = self.files.esp_file(r"\loader\loader.conf")
            if path is None:
                self.give_up(event.pcr, "loader.conf is not there; is the EFI system partition mounted?")
                continue
            try:
                self.exchange(event, self.files.digest(path), self.files.shown(path))
            except Unpredictable as reason:
                self.give_up(event.pcr, str(reason))

    def unknown_target(self, sentence: str) -> None:
        """Give up all that the next boot's software decides: nothing is known of it but the boot loader that
        starts it.
        """
        kinds = (Kind.IMAGE, Kind.OPTIONS, Kind.SECTION, Kind.STUB_OPTIONS, Kind.STUB_INITRD)
        self.give_up_events(self.measured.of(*kinds), sentence)

    def foreign_kinds(self) -> None:
        """Give up the PCRs of events that no row of the table has for this way to boot."""
        loader = self.measured.loader
        if loader is None:
            return
        expected = {row.kind for row in measured.TABLE if row.loader is loader}
        for kind, events in self.measured.by_kind.items():
            if kind not in expected:
                self.give_up_events(
                    events, f"{kind.value} is measured, which is not understood with {loader.value}"
                )

    # --- what follows ---------------------------------------------------------------------------------------

    def next_log(self) -> EventLog:
        """Return the log of the next boot."""
        events = [
            dataclasses.replace(event, digests={self.bank: digest}) if event.index in self._next else event
            for event in self.log.events
            for digest in self._next.get(event.index, (b"",))
        ]
        return dataclasses.replace(self.log, events=tuple(events))

    def outcomes(
        self, selection: Sequence[int], cap: int, running: Mapping[int, bytes]
    ) -> list[PredictedPcr]:
        """Predict each PCR of *selection*.

        *cap* is the PCR that the next boot's initrd finds untouched; *running* are the values in the TPM now.
        The log of the next boot is right only if the log of this boot leads to them, but for the words that
        systemd extends.
        """
        now, then = replay(self.log, self.bank), replay(self.next_log(), self.bank)
        outcomes = []
        for pcr in selection:
            initial = initial_value(self.log, self.bank, pcr)
            if pcr == cap:
                outcomes.append(PredictedPcr(pcr, initial))
                continue
            settled = now.get(pcr, initial)
            word = self._word_of_systemd(pcr, settled, running.get(pcr))
            if pcr in self.unpredictable:
                outcomes.append(PredictedPcr(pcr, None, unpredictable=self.unpredictable[pcr]))
                continue
            changed = self.changed.get(pcr, "")
            value = then.get(pcr, initial) if changed else settled
            outcomes.append(PredictedPcr(pcr, self._extended(value, word) if word else value, changed))
        return outcomes

    def _word_of_systemd(self, pcr: int, settled: bytes, running: bytes | None) -> str:
        """Return the word that systemd extended *pcr* with before a disk was opened; give up if *running* is
        unexplained.
        """
        if running is None:
            self.give_up(pcr, f"the TPM has no PCR bank {self.bank}")
        elif settled != running:
            if pcr in OS_SEPARATOR_PCRS and running == self._extended(settled, OS_SEPARATOR):
                return OS_SEPARATOR
            if pcr == _PHASE_PCR and self._leads_to(running, settled, PHASES):
                return _INITRD_PHASE
            if pcr != _PHASE_PCR or not self._leads_to(running, settled, _AFTER_INITRD):
                by = _EXTENDERS.get(pcr, "something extended it")
                self.give_up(pcr, f"its value is not what the event log leads to: {by} after the boot")
        return ""

    def _leads_to(self, running: bytes, value: bytes, words: Sequence[str]) -> bool:
        """Tell that *words*, or the first of them, make *running* of *value*."""
        for word in words:
            value = self._extended(value, word)
            if value == running:
                return True
        return False

    def _extended(self, value: bytes, word: str) -> bytes:
        return self.files.hash([value, self.files.hash_text(word)])


def name_of(target: Target, loader: Loader | None, release: str) -> str:
    """Return a name for the next boot, for the operator: at most 64 characters; *release* is uname -r's."""
    on_grub = loader is Loader.GRUB
    if on_grub and target.grub_line:
        name = target.grub_line.partition(" ")[0].rpartition("/")[2]
    else:
        path = target.uki or target.entry or target.kernel
        name = of_path(path).rpartition("/")[2] if path else ""
    if not name:
        return f"kernel {release}" if on_grub else "next boot"
    return plain(_label(name), 64)


def _label(name: str) -> str:
    if name.startswith("vmlinuz-"):
        return f"kernel {name.removeprefix('vmlinuz-')}"
    if name.endswith((".conf", ".efi")):
        name = name.rpartition(".")[0]
    # kernel-install puts the machine's id in front.
    identity, _, version = name.partition("-")
    if version and len(identity) == 32 and not identity.strip("0123456789abcdef"):
        return f"kernel {version}"
    return name
