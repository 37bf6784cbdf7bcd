"""The rights that systemd gives to the service, as its manager knows them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

#: There while systemd manages this machine (sd_booted(3)).
_BOOTED: Final = Path("/run/systemd/system")
_PATIENCE_S: Final = 10


def may_bind_any_port() -> bool:
    """Return True if the unit has CAP_NET_BIND_SERVICE, or its socket unit binds the port."""
    if not _BOOTED.is_dir():
        return False
    granted = _shown("tang-attest.service", "AmbientCapabilities")
    return (
        "cap_net_bind_service" in granted.split() or _shown("tang-attest.socket", "ActiveState") == "active"
    )


def _shown(unit: str, property_name: str) -> str:
    command = ["systemctl", "show", "--value", f"--property={property_name}", unit]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S603 - no word of it comes from outside
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip().lower()
