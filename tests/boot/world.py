"""A machine, its server and what happens between them: what the boot tests are written with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.boot.hardware.machine import Console, Machine, Network
from tests.boot.images import disk
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID, Built, Variant, build
from tests.boot.site import Site

NAME: Final = "pi-b"
#: Firmware, option ROMs, kernel, Secure Boot, initrd and command line, and the cap.
SELECTION: Final = "sha256:0,2,4,7,9,15"

PROMPT: Final = r"Please unlock disk root"
ROOT_IS_OPEN: Final = r"first-init: the root is open"
UNLOCKED: Final = r"tang-attest: unlocked by attestation"
REFUSED: Final = r"tang-attest: refused \(([a-z-]+)\): ([^\n]*)\n"


@dataclass
class World:
    """A directory with a server's state and a machine's; it can be copied while both are off."""

    directory: Path
    built: Built
    site: Site
    machine: Machine
    #: The differences between the machine and a plain PC, as arguments of :class:`Machine`.
    hardware: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, directory: Path, variant: Variant, **hardware: Any) -> Self:
        """A machine that nobody has enrolled; *hardware* are arguments of :class:`Machine`."""
        built = build(variant)
        directory.mkdir(parents=True)
        disk.copy(disk.root_image(built.root, built.name, ROOT_UUID), directory / "root.img")
        if variant.second:
            payload = directory / "second.payload"
            disk.filesystem(payload, 8192)
            disk.luks_image(directory / "second.img", payload, SECOND_UUID)
        # One of the two variants has a server with HTTPS.
        Site(directory / "site", https=variant.second)
        return cls._at(directory, built, **hardware)

    @classmethod
    def at(cls, directory: Path, variant: Variant, **hardware: Any) -> Self:
        """A world that is there already."""
        return cls._at(directory, build(variant), **hardware)

    @classmethod
    def _at(cls, directory: Path, built: Built, **hardware: Any) -> Self:
        disks = [path for path in (directory / "root.img", directory / "second.img") if path.exists()]
        machine = Machine(directory / "machine", built.kernel, built.initrd, disks, **hardware)
        return cls(directory, built, Site(directory / "site"), machine, hardware)

    def copy(self, directory: Path) -> Self:
        """The same world once more."""
        directory.mkdir(parents=True)
        for name in ("machine", "site"):
            shutil.copytree(self.directory / name, directory / name, ignore=_no_sockets)
        for image in self.directory.glob("*.img"):
            disk.copy(image, directory / image.name)
        return self._at(directory, self.built, **self.hardware)

    @property
    def root_disk(self) -> Path:
        return self.directory / "root.img"

    @property
    def network(self) -> Network:
        """The network in which the server is."""
        return Network(server_port=self.site.port)

    @contextmanager
    def boot(self, **changes: Any) -> Iterator[Console]:
        """Power the machine on, on the server's network unless *changes* say otherwise."""
        with replace(self.machine, **({"network": self.network} | changes)).boot() as console:
            yield console

    def enroll(
        self, selection: str = SELECTION, first_refusal: str = "pcr-mismatch", accepted: Sequence[str] = ()
    ) -> None:
        """Bind every disk, let the first boot be refused, and approve it: as an operator meets a new machine.

        With a PCR in *selection* that moves while a system runs, nothing is recorded at enrollment: *first_refusal* is
        then ``policy-empty``.  *accepted* are options of the approval.
        """
        with self.site:
            self.site.enroll(self.machine, NAME, self.root_disk, selection=selection)
            for image in self.machine.disks[1:]:
                with self.machine.tpm as tpm:
                    self.site.bind(self.machine, tpm, NAME, image, sss=True)
            with self.boot() as console:
                console.wait_for(PROMPT)
                assert console.wait_for(REFUSED)[1] == first_refusal
            self.site.approve(NAME, *accepted)


def shared(factory: pytest.TempPathFactory) -> Path:
    """The directory of this test run that all its processes have."""
    directory = factory.getbasetemp()
    return directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory


def open_by_passphrase(console: Console) -> None:
    """Type the passphrase at the prompt that is there, and see the root open."""
    console.type(disk.PASSPHRASE)
    console.wait_for(ROOT_IS_OPEN)


def _no_sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(directory) / name).is_socket()]
