"""One line of English about an event, for people.

Event *data* is not protected by anything unless it re-hashes to the event's digest (``rehash.py``): what is
written here may help to find out why a PCR differs, and must never decide whether it may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tang_attest.protocol.eventlog.device_path import device_path_text
from tang_attest.protocol.eventlog.structures import Event, EventType
from tang_attest.protocol.eventlog.text import (
    Fields,
    printable,
    size_and_bytes,
    text_or_bytes,
    utf16,
    value_text,
)

_GUID_NAMES: Final = {
    "8be4df61-93ca-11d2-aa0d-00e098032b8c": "EFI global",
    "d719b2cb-3d3a-4596-a3bc-dad00e67656f": "image security database",
    "605dab50-e046-4300-abb6-3dd810dd8b23": "shim",
}

_TAG_NAMES: Final = {
    # Linux, drivers/firmware/efi/libstub: INITRD_EVENT_TAG_ID and LOAD_OPTIONS_EVENT_TAG_ID.
    0x8F3B22EC: "initrd",
    0x8F3B22ED: "load options",
}

_MOST_BOOT_ENTRIES: Final = 32


def describe(event: Event) -> str:
    """Return *event*'s data as one printable line.  Never raises: odd data is shown as text or as bytes.

    NOT checked: that the data is what was measured (see ``data_matches_digest``).
    """
    decode = _DECODERS.get(event.type, text_or_bytes)
    try:
        return decode(event.data)
    except ValueError:
        return text_or_bytes(event.data)


def split_variable(data: bytes) -> tuple[str, str, bytes]:
    """UEFI_VARIABLE_DATA (PFP): the GUID, the printable name, the variable's raw value.

    Raises ``ValueError`` if a length does not fit.
    """
    fields = Fields(data)
    guid = fields.guid()
    name_length, value_length = fields.integer(8), fields.integer(8)  # in UTF-16 units and in bytes
    name = utf16(fields.take(2 * name_length))
    return guid, name, fields.take(value_length)


def _variable(data: bytes) -> str:
    guid, name, value = split_variable(data)
    return f"{name} ({_GUID_NAMES.get(guid, guid)}): {value_text(value)}"


def _boot_variable(data: bytes) -> str:
    guid, name, value = split_variable(data)
    try:
        shown = _boot_order(value) if name == "BootOrder" else _load_option(value)
    except ValueError:
        shown = size_and_bytes(value)
    return f"{name} ({_GUID_NAMES.get(guid, guid)}): {shown}"


def _boot_order(value: bytes) -> str:
    shown = value[: 2 * _MOST_BOOT_ENTRIES]
    entries = [f"{int.from_bytes(shown[at : at + 2], 'little'):04x}" for at in range(0, len(shown), 2)]
    more = ["..."] if len(shown) < len(value) else []
    return ", ".join(entries + more) or "no data"


def _load_option(value: bytes) -> str:
    """EFI_LOAD_OPTION (UEFI specification, "Load Options"): the description and the device path."""
    fields = Fields(value)
    fields.take(4)  # attributes
    path_length = fields.integer(2)
    characters = bytearray()
    while (character := fields.take(2)) != b"\0\0":
        characters += character
    path = device_path_text(fields.take(path_length))
    return f'"{utf16(bytes(characters))}" {printable(path)}'.rstrip()


def _image(data: bytes) -> str:
    """UEFI_IMAGE_LOAD_EVENT (PFP): address, length, link address, device path."""
    fields = Fields(data)
    fields.take(8)
    length = fields.integer(8)
    fields.take(8)
    path = printable(device_path_text(fields.take(fields.integer(8))))
    return f"{path or 'no device path'} ({length} bytes)"


def _separator(data: bytes) -> str:
    """EV_SEPARATOR (PFP): zeros or ones are normal, anything else stands for an error."""
    meaning = "separator" if data in {bytes(4), b"\xff" * 4} else "separator after an error"
    return f"{meaning}: {size_and_bytes(data)}"


def _crtm_version(data: bytes) -> str:
    if len(data) == 16 and data[1] != 0:
        return Fields(data).guid()
    return text_or_bytes(data)


def _blob(data: bytes) -> str:
    """UEFI_PLATFORM_FIRMWARE_BLOB (PFP); POST codes hold either this or a text."""
    if len(data) != 16:
        return text_or_bytes(data)
    fields = Fields(data)
    base, length = fields.integer(8), fields.integer(8)
    return f"firmware blob at 0x{base:x}, {length} bytes"


def _blob2(data: bytes) -> str:
    """UEFI_PLATFORM_FIRMWARE_BLOB2 (PFP): a counted description first."""
    fields = Fields(data)
    description = fields.take(fields.integer(1))
    return f"{text_or_bytes(description)}, {_blob(fields.rest)}"


def _tables2(data: bytes) -> str:
    """UEFI_HANDOFF_TABLE_POINTERS2 (PFP): a counted description, and the number of tables that follow."""
    fields = Fields(data)
    description = fields.take(fields.integer(1))
    return f"{text_or_bytes(description)}, {fields.integer(8)} tables"


def _tag(data: bytes) -> str:
    """TCG_PCClientTaggedEvent (PFP "EV_EVENT_TAG"), as the Linux EFI stub writes it."""
    fields = Fields(data)
    tag = fields.integer(4)
    tagged = fields.take(fields.integer(4))
    return f"{_TAG_NAMES.get(tag, f'tag 0x{tag:08x}')}: {text_or_bytes(tagged)}"


def _gpt(data: bytes) -> str:
    """UEFI_GPT_DATA (PFP): the disk's GUID stands at byte 56 of the partition table header."""
    fields = Fields(data)
    fields.take(56)
    disk = fields.guid()
    fields.take(20)
    return f"disk {disk}, {fields.integer(8)} partitions"


def _no_action(data: bytes) -> str:
    signature, rest = data[:16], data[16:]
    if signature == b"StartupLocality\0" and len(rest) == 1:
        return f"startup locality {rest[0]}"
    if signature.startswith(b"Spec ID Event"):
        return signature.rstrip(b"\0").decode("ascii", "replace")
    return text_or_bytes(signature) if signature.isascii() else size_and_bytes(data)


_DECODERS: Final[dict[int, Callable[[bytes], str]]] = {
    EventType.EV_NO_ACTION: _no_action,
    EventType.EV_SEPARATOR: _separator,
    EventType.EV_EVENT_TAG: _tag,
    EventType.EV_S_CRTM_CONTENTS: _blob,
    EventType.EV_S_CRTM_VERSION: _crtm_version,
    EventType.EV_POST_CODE: _blob,
    EventType.EV_POST_CODE2: _blob2,
    EventType.EV_EFI_VARIABLE_DRIVER_CONFIG: _variable,
    EventType.EV_EFI_VARIABLE_BOOT: _boot_variable,
    EventType.EV_EFI_VARIABLE_BOOT2: _boot_variable,
    EventType.EV_EFI_VARIABLE_AUTHORITY: _variable,
    EventType.EV_EFI_BOOT_SERVICES_APPLICATION: _image,
    EventType.EV_EFI_BOOT_SERVICES_DRIVER: _image,
    EventType.EV_EFI_RUNTIME_SERVICES_DRIVER: _image,
    EventType.EV_EFI_HANDOFF_TABLES2: _tables2,
    EventType.EV_EFI_GPT_EVENT: _gpt,
    EventType.EV_EFI_GPT_EVENT2: _gpt,
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB: _blob,
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2: _blob2,
}
