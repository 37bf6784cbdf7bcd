"""Machines whose files decide what their next boot measures: GRUB, systemd-boot, unified kernel images.

Each class writes a machine's files below a directory and lists what its firmware and boot loader measure of them, in the
way of the recorded logs in tests/vectors/eventlogs; nothing here is shared with the program.  A prediction is right if it
is the replay of the log that the same class writes after the change.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Final

from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.writer import Measurement

SELECTION: Final = "sha256:0,4,7,8,9,12,15"

#: /etc/machine-id
MACHINE: Final = "0123456789abcdef" * 2

_HEADERS: Final = 0x400
_OPTIONAL: Final = 0x40 + 24
_CHECKSUM: Final = _OPTIONAL + 64
_CERTIFICATES: Final = _OPTIONAL + 144


def pe(sections: dict[str, bytes]) -> bytes:
    """A PE32+ image with these sections, each padded to 512 bytes in the file; nobody could run it."""
    headers = bytearray(_HEADERS)
    headers[:2] = b"MZ"
    struct.pack_into("<I", headers, 0x3C, 0x40)
    struct.pack_into("<4sHHIIIHH", headers, 0x40, b"PE\0\0", 0x8664, len(sections), 0, 0, 0, 240, 0x222)
    struct.pack_into("<H", headers, _OPTIONAL, 0x20B)
    struct.pack_into("<II", headers, _OPTIONAL + 32, 4096, 512)  # alignment in memory and in the file
    struct.pack_into("<II", headers, _OPTIONAL + 56, 0x100000, _HEADERS)
    struct.pack_into("<IH", headers, _CHECKSUM, 0x12345678, 10)
    struct.pack_into("<I", headers, _OPTIONAL + 108, 16)  # data directories
    body = b""
    for index, (name, content) in enumerate(sections.items()):
        padded = content + bytes(-len(content) % 512)
        at = _OPTIONAL + 240 + 40 * index
        struct.pack_into("<8sIIII", headers, at, name.encode(), len(content), 0x1000 * (index + 1), len(padded),
                         _HEADERS + len(body))  # fmt: skip
        body += padded
    return bytes(headers) + body


def authenticode(image: bytes) -> bytes:
    """Bytes that Authenticode hashes of an unsigned image of :func:`pe`."""
    return image[:_CHECKSUM] + image[_CHECKSUM + 4 : _CERTIFICATES] + image[_CERTIFICATES + 8 :]


def loaded(path: str, image: bytes) -> Measurement:
    """The firmware loads an image; without a *path* from memory."""
    data = w.image_load(path) if path else bytes(32)
    return Measurement(4, w.EV_EFI_BOOT_SERVICES_APPLICATION, data, authenticode(image))


def utf16(text: str) -> bytes:
    """With the NUL that UEFI's strings have."""
    return (text + "\0").encode("utf-16-le")


def stub(options: str, initrd: bytes) -> list[Measurement]:
    """Linux' EFI stub."""
    return [
        Measurement(9, w.EV_EVENT_TAG, w.tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0"), utf16(options)),
        Measurement(9, w.EV_EVENT_TAG, w.tagged(0x8F3B22EC, b"Linux initrd\0"), initrd),
    ]


@dataclass
class Installed:
    """Files of a machine's disk, below ``root``."""

    root: Path

    @property
    def esp(self) -> Path:
        """The EFI system partition."""
        return self.root / "boot" / "efi"

    def write(self, name: str, content: bytes | str) -> Path:
        """A file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def cmdline(self) -> str:
        """/proc/cmdline of the boot."""
        raise NotImplementedError

    def install(self) -> None:
        """Write the files."""
        raise NotImplementedError

    def measured(self) -> list[Measurement]:
        """Events after the firmware's own part."""
        raise NotImplementedError

    def log(self, algorithms: Iterable[int] = (w.SHA256,)) -> bytes:
        """The event log of a boot of what is installed now."""
        return w.agile(tuple(algorithms), w.FIRMWARE[:-1] + self.measured())


@dataclass
class SystemdBoot(Installed):
    """systemd-boot and boot loader entries of the first type."""

    version: str = "6.1.0-28"
    kernel: bytes = b"linux 28"
    initrd: bytes = b"initrd 28"
    options: str = "root=/dev/mapper/root ro quiet"

    def install(self) -> None:
        self.write("boot/efi/EFI/systemd/systemd-bootx64.efi", pe({".text": b"systemd-boot"}))
        self.write(f"boot/efi/{self.version}/linux", pe({".text": self.kernel}))
        self.write(f"boot/efi/{self.version}/initrd", self.initrd)
        entry = f"title Debian\nlinux /{self.version}/linux\ninitrd /{self.version}/initrd\noptions {self.options}\n"
        self.write(f"boot/efi/loader/entries/{MACHINE}-{self.version}.conf", entry)

    def cmdline(self) -> str:
        directory = self.version.replace("/", "\\")
        return f"initrd=\\{directory}\\initrd {self.options}"

    def measured(self) -> list[Measurement]:
        options = self.cmdline()
        return [
            loaded("\\EFI\\SYSTEMD\\SYSTEMD-BOOTX64.EFI", pe({".text": b"systemd-boot"})),
            loaded(f"\\{self.version}\\linux", pe({".text": self.kernel})),
            Measurement(12, w.EV_IPL, utf16(options)),
            *stub(options, self.initrd),
        ]


@dataclass
class Unified(Installed):
    """One image that the firmware starts, with systemd's stub in it."""

    sections: dict[str, bytes] = field(
        default_factory=lambda: {
            ".sdmagic": b"#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####",
            ".osrel": b"ID=debian\n",
            ".cmdline": b"root=/dev/mapper/root quiet",
            ".linux": pe({".text": b"the kernel inside"}),
            ".initrd": b"the initrd inside",
        }
    )

    def image(self) -> bytes:
        """The file."""
        return pe(self.sections)

    def install(self) -> None:
        self.write("boot/efi/EFI/BOOT/bootx64.efi", self.image())

    def cmdline(self) -> str:
        return self.sections[".cmdline"].decode().rstrip()

    def measured(self) -> list[Measurement]:
        events = [loaded("\\EFI\\BOOT\\BOOTX64.EFI", self.image())]
        for name in (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"):
            if name in self.sections:
                for part in (name.encode() + b"\0", self.sections[name]):
                    events.append(Measurement(11, w.EV_IPL, utf16(name), part))
        events.append(loaded("", self.sections[".linux"]))
        return events + stub(self.cmdline(), self.sections[".initrd"])


@dataclass
class UBoot(Installed):
    """U-Boot with MEASURED_BOOT, which starts Linux without EFI; ``booti`` knows no size of a kernel, ``bootm`` does."""

    kernel: bytes = b"linux 28"
    initrd: bytes = b"initrd 28"
    options: str = "root=/dev/mapper/root quiet"
    sized: bool = True

    def install(self) -> None:
        self.write("boot/Image", self.kernel)
        self.write("boot/initrd.img", self.initrd)

    def cmdline(self) -> str:
        return self.options

    def measured(self) -> list[Measurement]:
        options = f"{self.options}\0".encode()
        return [
            Measurement(8, 0xC, b"linux\0", self.kernel if self.sized else b"linux\0"),
            Measurement(9, 0xC, b"initrd\0", self.initrd),
            Measurement(1, 0xB, b"dts\0", b"a device tree"),
            Measurement(1, 0xA, options, options),
        ]


_HEADER: Final = """#
# DO NOT EDIT THIS FILE
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="0"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi

export menuentry_id_option

function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}

"""

_MIDDLE: Final = """if [ x$feature_timeout_style = xy ] ; then
  set timeout_style=menu
  set timeout=@TIMEOUT@
# Fallback normal timeout code in case the timeout_style feature is
# unavailable.
else
  set timeout=@TIMEOUT@
fi
function gfxmode {
\tset gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
"""

_ENTRY: Final = """\tload_video
\tinsmod gzio
\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
\tinsmod part_gpt
\tsearch --no-floppy --fs-uuid --set=root 0f6e5a3c
\techo\t'Loading Linux @VERSION@ ...'
\tlinux\t/boot/vmlinuz-@VERSION@ root=/dev/mapper/root ro  @OPTIONS@
\techo\t'Loading initial ramdisk ...'
\tinitrd\t/boot/initrd.img-@VERSION@
"""


@dataclass
class Grub(Installed):
    """GRUB with the grub.cfg of Debian 12: the newest kernel first, every kernel in a submenu."""

    versions: list[str] = field(default_factory=lambda: ["6.1.0-28"])
    options: str = "quiet"
    timeout: int = 5
    initrds: dict[str, bytes] = field(default_factory=dict)
    _: KW_ONLY
    kernel_in_pcr4: int = 0  #: number of times that shim and the firmware measure the kernel, too
    title: str = "Debian GNU/Linux"

    def _entry(self, version: str) -> str:
        return _ENTRY.replace("@VERSION@", version).replace("@OPTIONS@", self.options)

    def _advanced(self) -> str:
        lines = []
        for version in self.versions:
            body = "".join(f"\t{line}\n" for line in self._entry(version).splitlines())
            head = (
                f"\tmenuentry '{self.title}, with Linux {version}' $menuentry_id_option 'gnulinux-{version}'"
            )
            lines.append(f"{head} {{\n{body}\t}}\n")
        return "".join(lines)

    def config(self) -> str:
        """grub.cfg."""
        return (
            _HEADER
            + _MIDDLE.replace("@TIMEOUT@", str(self.timeout))
            + f"menuentry '{self.title}' --class debian --class os $menuentry_id_option 'gnulinux-simple-0f6e5a3c' {{\n"
            + self._entry(self.versions[0])
            + f"}}\nsubmenu 'Advanced options for {self.title}' $menuentry_id_option 'gnulinux-advanced-0f6e5a3c' {{\n"
            + self._advanced()
            + "}\n"
        )

    def kernel(self, version: str) -> bytes:
        """A kernel's file."""
        return pe({".text": f"linux {version}".encode()})

    def initrd(self, version: str) -> bytes:
        """An initrd's file."""
        return self.initrds.get(version, f"initrd {version}".encode())

    def install(self) -> None:
        self.write("boot/efi/EFI/debian/grubx64.efi", pe({".text": b"grub"}))
        self.write("boot/efi/EFI/debian/grub.cfg", "configfile")
        self.write("boot/grub/grubenv", "# GRUB Environment Block\n####")
        self.write("boot/grub/x86_64-efi/gzio.mod", b"a module")
        self.write("boot/grub/grub.cfg", self.config())
        for version in self.versions:
            self.write(f"boot/vmlinuz-{version}", self.kernel(version))
            self.write(f"boot/initrd.img-{version}", self.initrd(version))

    def cmdline(self) -> str:
        return f"BOOT_IMAGE={self.arguments()}"

    def arguments(self) -> str:
        """The command line as GRUB measures it."""
        return f"/boot/vmlinuz-{self.versions[0]} root=/dev/mapper/root ro {self.options}"

    def measured(self) -> list[Measurement]:
        version = self.versions[0]
        grub = "(hd0,gpt2)/boot/grub"
        entry = f"menuentry {self.title} --class debian --class os --id gnulinux-simple-0f6e5a3c"
        advanced = f"submenu Advanced options for {self.title} --id gnulinux-advanced-0f6e5a3c"
        kernel = [loaded("", self.kernel(version))] * self.kernel_in_pcr4
        return [
            loaded("\\EFI\\debian\\grubx64.efi", pe({".text": b"grub"})),
            self._file("(hd0,gpt1)/EFI/debian/grub.cfg"),
            *self._commands(f"set prefix={grub}", f"configfile {grub}/grub.cfg"),
            self._file(f"{grub}/grub.cfg"),
            *self._commands(f"[ -s {grub}/grubenv ]"),
            self._file(f"{grub}/grubenv"),
            *self._commands("set have_grubenv=true", "load_env"),
            self._file(f"{grub}/grubenv"),
            *self._commands(
                "[  ]", "set default=0", "[ xy = xy ]", "menuentry_id_option=--id", "export menuentry_id_option",
                "[ xy = xy ]", "set timeout_style=menu", f"set timeout={self.timeout}", "set linux_gfx_mode=",
                "export linux_gfx_mode", f"{entry} {{\n{self._entry(version)}}}", f"{advanced} {{\n{self._advanced()}}}",
                f"setparams {self.title}", "load_video", "[ xy = xy ]", "insmod all_video", "insmod gzio",
            ),
            self._file(f"{grub}/x86_64-efi/gzio.mod"),
            *self._commands(
                "[ xefi = xxen ]", "insmod part_gpt", "search --no-floppy --fs-uuid --set=root 0f6e5a3c",
                f"echo Loading Linux {version} ...", f"linux {self.arguments()}",
            ),
            self._file(f"/boot/vmlinuz-{version}"),
            *kernel,
            Measurement(8, w.EV_IPL, f"kernel_cmdline: {self.arguments()}\0".encode(), self.arguments().encode()),
            *self._commands("echo Loading initial ramdisk ...", f"initrd /boot/initrd.img-{version}"),
            self._file(f"/boot/initrd.img-{version}"),
        ]  # fmt: skip

    def _commands(self, *commands: str) -> list[Measurement]:
        return [Measurement(8, w.EV_IPL, f"grub_cmd: {text}\0".encode(), text.encode()) for text in commands]

    def _file(self, name: str) -> Measurement:
        path = name.partition("/")[2]
        if path.startswith("EFI/"):
            path = f"boot/efi/{path}"
        return Measurement(9, w.EV_IPL, f"{name}\0".encode(), (self.root / path).read_bytes())
