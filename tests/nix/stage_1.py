"""A NixOS machine with one encrypted volume, as module text."""

from __future__ import annotations

ATTEST = "boot.initrd.tang-attest"
DEVICE = "boot.initrd.luks.devices.root"


def machine_with(definitions: str, *, systemd: bool = False, device: str = "/dev/disk/by-uuid/1234") -> str:
    """The module of a machine whose root is opened by attestation, and that has *definitions* too."""
    return (
        "{ lib, pkgs, ... }: { imports = [ { "
        f"{ATTEST}.enable = true; {ATTEST}.devices.root = {{ }}; "
        'fileSystems."/".device = "/dev/mapper/root"; '
        f'{DEVICE}.device = "{device}"; boot.initrd.systemd.enable = {str(systemd).lower()}; '
        f"}} {{ {definitions} }} ]; }}"
    )
