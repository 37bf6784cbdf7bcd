"""Generate settings.json for nix/ and the documentation of its modules; a test compares both."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tang_attest.config import Settings

ROOT = Path(__file__).parent.parent
_OPTION_DOCS = ROOT / "tests/nix/nixpkgs/option-docs.nix"
MODULES = {
    "services.tang-attest": "The server",
    "boot.initrd.tang-attest": "Opening volumes in stage 1",
    "services.clevis-attest-agent": "The agent",
}
MADE = "<!-- made by tools/generate_docs.py -->\n\n"


def settings() -> str:
    """Return the server's settings as JSON Schema; nix/module-server.nix makes options of it."""
    properties = Settings.model_json_schema()["properties"]
    for schema in properties.values():
        schema.pop("title", None)
    # The server checks what is in the table of a receiver.
    for name in ("additionalProperties", "patternProperties", "maxProperties", "propertyNames"):
        properties["notify"].pop(name, None)
    return json.dumps({"properties": properties}, indent=2) + "\n"


def options() -> str:
    """docs/nixos-options.md: every option that the modules declare."""
    described = _describe()
    parts = [
        f"# Options of the NixOS modules\n\n{MADE}Their use: [NixOS](how-to/boot/nixos.md).\n",
        "Any other option stops the evaluation.\n",
    ]
    for module, title in MODULES.items():
        parts.append(f"\n## {title}: `{module}`\n")
        parts += [_entry(option) for option in described if option["name"].startswith(f"{module}.")]
    return "".join(parts)


def _entry(option: dict[str, Any]) -> str:
    lines = [f"\n### `{option['name']}`\n\n{option['description'].strip()}\n", f"\nType: {option['type']}"]
    lines += [f"  \n{key.capitalize()}: `{option[key]}`" for key in ("default", "example") if option.get(key)]
    return "".join(lines) + "\n"


def _describe() -> list[dict[str, Any]]:
    """Return the options found by nixpkgs/option-docs.nix, under the tests' evaluator: no nixpkgs is needed."""
    with tempfile.TemporaryDirectory() as directory:
        result = subprocess.run(  # noqa: S603 - our own file, by Debian's Nix
            ["nix-instantiate", "--eval", "--strict", "--json", str(_OPTION_DOCS)],  # noqa: S607
            env=os.environ | private_nix(Path(directory)),
            check=True,
            stdout=subprocess.PIPE,
        )
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def private_nix(directory: Path) -> dict[str, str]:
    """The environment in which Nix works without a daemon, without /nix and without a network."""
    return {
        "HOME": str(directory / "home"),
        "NIX_CONF_DIR": str(directory / "etc"),
        "NIX_CONFIG": "build-users-group =\nsandbox = false\nsubstitute = false\nsubstituters =\n",
        "NIX_LOG_DIR": str(directory / "log"),
        "NIX_PATH": "",
        "NIX_REMOTE": "local",
        "NIX_STATE_DIR": str(directory / "state"),
        "NIX_STORE_DIR": str(directory / "store"),
    }
