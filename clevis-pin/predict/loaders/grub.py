"""GRUB: every command of its scripts and the kernel's command line (PCR 8), every file that it reads (PCR 9).

The commands of the next boot are those of this one as long as grub.cfg is the same.  Of a new grub.cfg just
enough is read to say which of the measured commands changed: the menu entries, whose old text is in the log,
and the body of the entry that is started.  A change anywhere else is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from predict import measured
from predict.files import is_file
from predict.loaders import grub_script
from predict.loaders.grub_script import UNKNOWN, Statement
from predict.loaders.stub import exchange_options, same_options
from predict.measured import Kind, command_text
from predict.plan import Plan
from predict.sentences import Unpredictable
from predict.text import event_text, lines, words
from tang_attest.protocol.eventlog.structures import Event

_SEARCHED: Final = ("", "/boot", "/boot/efi", "/efi")
"""Directories that may be the top of a file system that GRUB reads."""

_ASSIGNMENT: Final = re.compile(r"(?:set )?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_GRUB_COMMAND: Final = b"grub_cmd: "
_KERNEL_COMMAND_LINE: Final = b"kernel_cmdline: "
_MEMDISK: Final = "(memdisk)"
_LINUX: Final = ("linux ", "linuxefi ")
_INITRD: Final = ("initrd ", "initrdefi ")


def predict(plan: Plan) -> None:
    """Predict PCR 4, 8 and 9."""
    boot = GrubBoot(plan)
    boot.images()
    if not boot.commands_are_understood():
        return
    boot.script()
    boot.files()
    boot.efi_stub()
    boot.given()


class GrubBoot:
    """The events of one boot by GRUB, and the files that take the place of those that it read."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._commands = [event for event in plan.measured.of(Kind.COMMAND) if event.pcr == 8]
        self._files = plan.measured.of(Kind.FILE)
        #: Images without a path: kernels that GRUB 2.12 starts through the firmware.
        self._kernels = [event for event in plan.measured.of(Kind.IMAGE) if not measured.image_path(event)]
        self._new_paths: dict[str, str] = {}
        self._old_line = ""
        self._new_line = ""

    # --- how it was measured --------------------------------------------------------------------------------

    def images(self) -> None:
        """Predict what the firmware or shim loaded, but for the kernel."""
        self._plan.boot_loaders(
            event for event in self._plan.measured.of(Kind.IMAGE) if event not in self._kernels
        )

    def commands_are_understood(self) -> bool:
        """Tell that every command has the digest of its text; otherwise give PCR 8 and 9 up."""
        for event in self._commands:
            if self._plan.files.hash_text(command_text(event)) != self._plan.digest(event):
                self._plan.give_up(8, f"event {event.index} is not the digest of the command beside it")
                self._plan.give_up(9, "what GRUB read depends on commands that are not understood")
                return False
        return True

    # --- files ----------------------------------------------------------------------------------------------

    def files(self) -> None:
        """Predict PCR 9: each file is read again, as it is now, or the one that takes its place."""
        for event in self._files:
            name = event_text(event.data)
            if name is None or "/" not in name:
                self._plan.give_up(9, f"event {event.index} does not name a file")
            elif name.startswith(_MEMDISK):
                if 4 in self._plan.changed:
                    self._plan.give_up(9, f"{name} is inside a GRUB that has changed")
            else:
                try:
                    self._file(event, name)
                except Unpredictable as reason:
                    self._plan.give_up(9, str(reason))

    def _file(self, event: Event, name: str) -> None:
        path = self._find(self._new_paths.get(name, name), self._plan.digest(event))
        digest, shown = self._plan.files.digest(path), self._plan.files.shown(path)
        self._plan.exchange(event, digest, shown)
        if name.endswith("/grubenv") and digest != self._plan.digest(event):
            self._plan.give_up(8, f"{shown} has changed, and with it what GRUB starts")

    def _find(self, name: str, digest: bytes) -> Path:
        """Return the file that GRUB calls *name*, such as ``(hd0,gpt2)/grub/grub.cfg``.

        GRUB's paths begin at the top of a file system, so the file with the right *digest* decides, or the
        only one there is. Raises :class:`Unpredictable` if there is none, or if there are several.
        """
        found: Path | None = None
        for candidate in self._candidates(name):
            if self._plan.files.digest(candidate) == digest:
                return candidate
            if found and not found.samefile(candidate):
                known = self._plan.files.known
                raise Unpredictable(
                    f"it is not clear which file {name} is: {known(found)} or {known(candidate)}"
                )
            found = candidate
        if found is None:
            raise Unpredictable(f"{name}, which GRUB read, is not there")
        return found

    def _candidates(self, name: str) -> Iterator[Path]:
        path = name[name.find("/") :] if "/" in name else ""
        for directory in _SEARCHED:
            # btrfs: the subvolume of the root is /@.
            for below in (path, path.removeprefix("/@")):
                candidate = self._plan.files.path(f"{directory}{below}".lstrip("/"))
                if is_file(candidate):
                    yield candidate

    def _now(self, name: str) -> Path:
        """Return the file that takes the place of the one that GRUB read as *name*."""
        for event in self._files:
            if event_text(event.data) == name:
                return self._find(self._new_paths.get(name, name), self._plan.digest(event))
        raise Unpredictable(f"the log does not say that GRUB read {name}")

    # --- grub.cfg -------------------------------------------------------------------------------------------

    def script(self) -> None:
        """Predict PCR 8 if grub.cfg is another one than in this boot."""
        configs = [event for event in self._files if _is_config(event_text(event.data))]
        if not configs:
            self._plan.give_up(8, "the log names no grub.cfg")
            return
        event = configs[-1]
        try:
            path = self._find(event_text(event.data) or "", self._plan.digest(event))
        except Unpredictable as reason:
            self._plan.give_up(8, str(reason))
            return
        try:
            if self._plan.files.digest(path) != self._plan.digest(event):
                self._new_script(path, event)
        except Unpredictable as reason:
            self._plan.give_up(8, str(reason))
            self._plan.give_up(9, f"which files GRUB reads depends on its script: {reason}")
            self._plan.give_up_events(
                self._kernels, f"which kernel GRUB starts depends on its script: {reason}"
            )

    def _new_script(self, path: Path, config: Event) -> None:
        top, started = self._split(config)
        variables = self._variables()
        default = variables.get("default", "0")
        if default != "0":
            raise Unpredictable(
                f"the default entry of this boot was '{default}', and only the first one is understood"
            )
        if any(event.data.startswith(_GRUB_COMMAND + b"blscfg") for event in self._commands):
            raise Unpredictable("GRUB reads boot loader entries (blscfg), which is not understood")
        statements = grub_script.parse(lines(self._plan.files.text(path)), variables)
        entry = self._top(top, statements)
        self._body(started, statements, entry, variables)

    def _split(self, config: Event) -> tuple[list[Event], list[Event]]:
        """Return the commands behind *config*: those before an entry was started, and those from its start
        on.
        """
        behind = [event for event in self._commands if event.index > config.index]
        for at, event in enumerate(behind):
            if event.data.startswith(_GRUB_COMMAND + b"setparams "):
                return behind[:at], behind[at:]
        raise Unpredictable("the log shows no menu entry that was started")

    def _variables(self) -> dict[str, str]:
        """Return the variables of this boot; one that was set twice, and differently, is not known."""
        variables: dict[str, str] = {}
        for event in self._commands:
            match = _ASSIGNMENT.fullmatch(command_text(event))
            if match and event.data.startswith(_GRUB_COMMAND):
                name, value = match.groups()
                variables[name] = value if variables.get(name, value) == value else UNKNOWN
        return variables

    def _top(self, events: Sequence[Event], statements: Sequence[Statement]) -> _Started:
        """Follow what runs before an entry is started: commands stay, entries may change.  Return the first
        entry.
        """
        used: set[int] = set()
        entry, first = -1, _Started("", "", "")
        for event in events:
            command = _command(event)
            if command.startswith(("menuentry ", "submenu ")):
                entry = _same_entry(command, statements, entry + 1)
                used.add(entry)
                statement = statements[entry]
                if not first.new_body:
                    first = _Started.of(statement, command)
                self._replace(event, statement.text, f"menu entry {statement.title.partition(' ')[2]}")
            elif not command.startswith("["):
                found = [
                    i
                    for i, s in enumerate(statements)
                    if not s.is_entry and grub_script.matches(command, s.text)
                ]
                if not found:
                    raise Unpredictable(f"grub.cfg has changed outside its menu entries: {command}")
                used.update(found)
        for i, statement in enumerate(statements):
            if i not in used and not statement.in_function and not statement.depth:
                raise Unpredictable(
                    f"grub.cfg has a command that was not run in this boot: {statement.header}"
                )
        return first

    def _body(
        self,
        events: Sequence[Event],
        statements: Sequence[Statement],
        entry: _Started,
        variables: dict[str, str],
    ) -> None:
        """Follow the commands of the started entry: line by line they become those of the new entry."""
        started = _command(events[0])
        if started != f"setparams {entry.title}":
            raise Unpredictable(
                f"this boot was not that of the first entry, but of {started.removeprefix('setparams ')}"
            )
        functions = [statement.text for statement in statements if statement.in_function]
        old = [s.text for s in grub_script.parse(_body_lines(entry.old_body), variables)]
        new = [s.text for s in grub_script.parse(_body_lines(entry.new_body), variables)]
        if [text.partition(" ")[0] for text in old] != [text.partition(" ")[0] for text in new]:
            raise Unpredictable("the first entry of grub.cfg has other commands than before")
        for before, after in zip(old, new, strict=True):
            self._map_paths(before, after)
        for event in events[1:]:
            if event.data.startswith(_KERNEL_COMMAND_LINE):
                self._kernel_line(event)
            else:
                self._body_command(event, old, new, functions)

    def _body_command(
        self, event: Event, old: Sequence[str], new: Sequence[str], functions: Sequence[str]
    ) -> None:
        command = _command(event)
        for before, after in zip(old, new, strict=True):
            if grub_script.matches(command, before):
                if before != after:
                    self._replace(event, after, after)
                return
        if not command.startswith("[") and not any(grub_script.matches(command, line) for line in functions):
            raise Unpredictable(f"a command of this boot is not in grub.cfg: {command}")

    def _map_paths(self, old: str, new: str) -> None:
        """Note the files that ``linux`` and ``initrd`` name, and the command line."""
        before, after = (text.partition(" ")[2] for text in (old, new))
        old_names, new_names = words(before), words(after)
        if old.startswith(_LINUX):
            if not new_names:
                raise Unpredictable("the first entry of grub.cfg starts no kernel")
            self._new_paths[old_names[0]] = new_names[0]
            self._old_line, self._new_line = before, after
            self._plan.target.grub_line = after
        elif old.startswith(_INITRD):
            if len(old_names) != len(new_names):
                raise Unpredictable("the first entry of grub.cfg has another number of initrds")
            self._new_paths.update(zip(old_names, new_names, strict=True))

    def _kernel_line(self, event: Event) -> None:
        """Replace the command line; GRUB quotes what is not plain in it once more, in its own way."""
        if not grub_script.matches(command_text(event), self._old_line):
            raise Unpredictable("the command line of this boot is not that of the first entry")
        if self._new_line != self._old_line and any(quote in self._new_line for quote in "'\"\\"):
            raise Unpredictable("the command line in grub.cfg has quotes or backslashes")
        self._replace(event, self._new_line, f"command line: {self._new_line}")

    def _replace(self, event: Event, text: str, what: str) -> None:
        """Let *event* become that of the command *text*."""
        if command_text(event) == text:
            return
        if UNKNOWN in text:
            raise Unpredictable(f"a variable in grub.cfg is not known: {text.partition('{')[0]}")
        self._plan.exchange(event, self._plan.files.hash_text(text), what)

    # --- GRUB 2.12: the kernel's own EFI stub measures, too -------------------------------------------------

    def efi_stub(self) -> None:
        """Predict what the firmware, shim and Linux' EFI stub measure of the kernel that GRUB starts."""
        options, initrds = self._plan.measured.of(Kind.STUB_OPTIONS), self._plan.measured.of(Kind.STUB_INITRD)
        line, names = self._last(_KERNEL_COMMAND_LINE), ""
        for event in self._commands:
            if _command(event).startswith(_INITRD):
                names = _command(event).partition(" ")[2]
        self._kernel_images(line.partition(" ")[0])
        if options:
            self._stub_options(options, line)
        if initrds:
            self._stub_initrd(initrds, words(names))

    def _last(self, prefix: bytes) -> str:
        found = [command_text(event) for event in self._commands if event.data.startswith(prefix)]
        return found[-1] if found else ""

    def _kernel_images(self, name: str) -> None:
        """Predict the kernel in PCR 4; shim and the firmware each measure it."""
        if not self._kernels:
            return
        config = next((event for event in reversed(self._files) if _is_config(event_text(event.data))), None)
        first = self._plan.digest(self._kernels[0])
        if any(
            self._plan.digest(event) != first or (config and event.index < config.index)
            for event in self._kernels
        ):
            self._plan.give_up(4, "the log has several images without a file")
            return
        try:
            path = self._now(name)
            digest = self._plan.image_digest(path)
        except Unpredictable as reason:
            self._plan.give_up(4, str(reason))
            return
        for event in self._kernels:
            self._plan.exchange(event, digest, f"kernel {self._plan.files.shown(path)}")

    def _stub_options(self, events: list[Event], line: str) -> None:
        if (
            not same_options(self._plan, f"BOOT_IMAGE={line}", changes=bool(self._new_line))
            or not self._new_line
        ):
            return
        exchange_options(self._plan, events, f"BOOT_IMAGE={self._new_line}", self._new_line)

    def _stub_initrd(self, events: Sequence[Event], names: Sequence[str]) -> None:
        if len(names) != 1 or len(events) != 1:
            self._plan.give_up(9, "the initrd is made of several files")
            return
        try:
            path = self._now(names[0])
            self._plan.exchange(
                events[0], self._plan.files.digest(path), f"initrd {self._plan.files.shown(path)}"
            )
        except Unpredictable as reason:
            self._plan.give_up(9, str(reason))

    def given(self) -> None:
        """Give up if the caller knows of another kernel or initrd: grub.cfg decides."""
        target = self._plan.target
        read = {digest for event in self._files for digest in self._plan.next_digests(event)}
        for wanted in [*([target.kernel] if target.kernel else []), *target.initrds]:
            try:
                if self._plan.files.digest(wanted) in read:
                    continue
            except Unpredictable:
                pass
            for pcr in (9, 8):
                self._plan.give_up(pcr, f"GRUB's configuration does not start {wanted}")


class _Started:
    """The first menu entry: its *title*, its body in this boot and in the next one."""

    def __init__(self, title: str, old_body: str, new_body: str) -> None:
        self.title = title
        self.old_body = old_body
        self.new_body = new_body

    @classmethod
    def of(cls, statement: Statement, command: str) -> _Started:
        body = command.partition("{\n")[2] if "{\n" in command else command
        return cls(statement.title.removeprefix("menuentry "), body.removesuffix("}"), statement.body)


def _is_config(name: str | None) -> bool:
    return name is not None and name.endswith("/grub.cfg") and not name.startswith(_MEMDISK)


def _command(event: Event) -> str:
    """Return a command without ``grub_cmd:``; of a command line with its own prefix."""
    text = event_text(event.data) or ""
    return text.removeprefix("grub_cmd: ")


def _same_entry(command: str, statements: Sequence[Statement], start: int) -> int:
    """Return the index of the entry, from *start* on, that has the title of *command*."""
    for i in range(start, len(statements)):
        if statements[i].is_entry and command.startswith(f"{statements[i].title} "):
            return i
    raise Unpredictable(f"the menu of grub.cfg has other entries: {command.partition('{')[0]}")


def _body_lines(body: str) -> list[str]:
    return lines(body) or [""]
