"""services.tang-attest: typed options, the file and the unit that come of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tang_attest.config import Settings, load_settings
from tests.cli.serving import initialize
from tests.nix.conftest import units_directory
from tests.nix.nix import EvaluationError, Nix
from tools import generate_nix
from tools.generate_nix import ROOT

SERVER = "services.tang-attest"
ENABLED = f"{{ {SERVER}.enable = true; %s }}"
CONFIG_FILE = re.compile(r"--config (\S+)$")

SCHEMA: dict[str, dict[str, Any]] = json.loads(generate_nix.settings())["properties"]
#: state and port_file are the module's own.
OFFERED = sorted(set(SCHEMA) - {"state", "port_file"})
#: Settings that need a certain value.
CHOSEN: dict[str, Any] = {
    "console_listen": "127.0.0.1:7580",
    "console_url": "https://console.example",
    "database": "postgresql+asyncpg://tang:a'\"\\b@db/tang",
    "endpoint": "/tang",
    "host": "::1",
    "limit_exempt": "10.0.0.0/8,fd00::/8",
    "metrics_listen": "127.0.0.1:9750",
    "notify": {
        "ops": {
            "kind": "mail",
            "server": "mail.example.org",
            "sender": "tang@example.org",
            "to": ["ops@example.org"],
            "names": False,
        },
    },
    "server_tpm": "device:/dev/tpmrm0",
}


def another(name: str) -> Any:
    """A value of a setting that is not its default."""
    schema = SCHEMA[name]
    kind = next((choice for choice in schema.get("anyOf", []) if choice["type"] != "null"), schema)
    if name in CHOSEN:
        return CHOSEN[name]
    if "enum" in kind:
        return next(choice for choice in kind["enum"] if choice != schema["default"])
    if kind["type"] == "boolean":
        return not schema["default"]
    if kind["type"] == "integer":
        least, most = kind.get("minimum", 1), kind.get("maximum", 2**31)
        return most if schema["default"] != most else least
    if kind["type"] == "array":
        return [name]
    return f"/run/{name}" if kind.get("format") == "path" else name


OTHER = {name: another(name) for name in OFFERED}


def nix_string(text: str) -> str:
    """A Nix string literal."""
    return json.dumps(text).replace("${", "\\${")


def nix_value(value: Any) -> str:
    """A Nix literal."""
    if isinstance(value, list):
        return f"[ {' '.join(nix_value(item) for item in value)} ]"
    if isinstance(value, dict):
        return f"{{ {' '.join(f'{name} = {nix_value(item)};' for name, item in value.items())} }}"
    return nix_string(value) if isinstance(value, str) else json.dumps(value)


def nix_settings(settings: dict[str, Any]) -> str:
    """Definitions of settings."""
    return " ".join(f"{SERVER}.settings.{name} = {nix_value(value)};" for name, value in settings.items())


def config_file(nix: Nix, definitions: str) -> Path:
    """The TOML file that the server is started with."""
    expression = "r.config.systemd.services.tang-attest.serviceConfig.ExecStart"
    reset, command = nix.realize(ENABLED % definitions, expression)
    assert reset == ""
    match = CONFIG_FILE.search(command)
    assert match, command
    return Path(match[1])


def test_every_setting_is_offered(nix: Nix) -> None:
    """nix/settings.json is made from the server's settings, so a new one is an option at once."""
    offered = nix.evaluate(ENABLED % "", f"builtins.attrNames r.config.{SERVER}.settings")
    assert offered == OFFERED
    assert len(OFFERED) > 10


def test_defaults_are_the_servers(nix: Nix) -> None:
    """An untouched module gives a file from which the server reads its own defaults."""
    assert load_settings(config_file(nix, ""), {}) == Settings()


def test_every_setting_arrives(nix: Nix) -> None:
    """The server's own parser reads the settings."""
    assert load_settings(config_file(nix, nix_settings(OTHER)), {}) == Settings(**OTHER)


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        (f"{SERVER}.settings.port = 65536;", f"{SERVER}.settings.port"),
        (f'{SERVER}.settings.port = "7500";', f"{SERVER}.settings.port"),
        (f'{SERVER}.settings.endpoint = "ta ng";', f"{SERVER}.settings.endpoint"),
        (f"{SERVER}.settings.challenge_ttl = 4;", f"{SERVER}.settings.challenge_ttl"),
        (f'{SERVER}.settings.log_level = "loud";', f"{SERVER}.settings.log_level"),
        (f'{SERVER}.settings.plain_tang = "no";', f"{SERVER}.settings.plain_tang"),
        (f"{SERVER}.settings.tls_key = ./key.pem;", f"{SERVER}.settings.tls_key"),
        (f'{SERVER}.settings.server_tpm = "/dev/tpmrm0";', f"{SERVER}.settings.server_tpm"),
        (f'{SERVER}.tls.key = "key.pem";', f"{SERVER}.tls.key"),
        (f"{SERVER}.settings.prot = 7500;", f"{SERVER}.settings.prot"),
        (f'{SERVER}.settings.state = "/srv";', f"{SERVER}.settings.state"),
    ],
)
def test_a_wrong_setting_stops_the_evaluation(nix: Nix, definition: str, complaint: str) -> None:
    """A wrong value, or a setting that is not there, is an error that names it."""
    with pytest.raises(EvaluationError, match=re.escape(complaint)):
        nix.evaluate(ENABLED % definition, "r.config.services.tang-attest.settings")


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        (f'{SERVER}.tls.key = "/k";', "certificate and key are given together"),
        (f'{SERVER}.tls.certificate = "/c";', "certificate and key are given together"),
        (
            f'{SERVER}.tls = {{ certificate = "/c"; key = "${{builtins.storeDir}}/x-key"; }};',
            "the TLS key is in the Nix store",
        ),
        (f'{SERVER}.settings.tang_dir = "/var/db/tang";', "needs plain_tang = true"),
        (f"{SERVER} = {{ openFirewall = true; settings.port = 0; }};", "needs a fixed settings.port"),
    ],
)
def test_what_cannot_work_is_said(nix: Nix, definitions: str, message: str) -> None:
    """An assertion names the option and what to do."""
    failed = nix.evaluate(ENABLED % definitions, "r.failed")
    assert [text for text in failed if message in text and SERVER in text], failed


def test_a_plain_server_fails_no_assertion(nix: Nix) -> None:
    """The assertions above are not always there."""
    assert [text for text in nix.evaluate(ENABLED % "", "r.failed") if SERVER in text] == []


def effective_units(nix: Nix, directory: Path, definitions: str) -> Path:
    """The package's unit and what the module adds to it, as NixOS puts them together."""
    package, units = nix.realize(ENABLED % definitions, "[ r.config.services.tang-attest.package r.units ]")
    base = (Path(package) / "lib/systemd/system/tang-attest.service").read_text()
    files = {name: text for name, text in units.items() if name.startswith("tang-attest")}
    files["tang-attest.service.d/overrides.conf"] = files["tang-attest.service"]
    return units_directory(directory, files | {"tang-attest.service": base})


@pytest.mark.parametrize(
    "definitions",
    [
        "",
        f"{SERVER}.openFirewall = true;",
        f"{SERVER}.postgresql.enable = true;",
        f'{SERVER}.tls = {{ certificate = "/c.pem"; key = "/k.pem"; }};',
        f"{SERVER}.socket.enable = true;",
        f'{SERVER}.settings.server_tpm = "device:/dev/tpmrm0";',
        f"{SERVER}.initialize = false;",
    ],
    ids=["plain", "firewall", "postgresql", "tls", "socket", "server-tpm", "no-init"],
)
def test_systemd_accepts_the_units(nix: Nix, tmp_path: Path, definitions: str) -> None:
    """systemd-analyze has nothing to say, and every program that the unit starts is in the store."""
    directory = effective_units(nix, tmp_path / "units", definitions)
    if "postgresql" in definitions:
        (directory / "postgresql.target").write_text("[Unit]\n")
    services = sorted(directory.glob("tang-attest*.service"))
    sockets = list(directory.glob("*.socket"))
    assert bool(sockets) is ("socket" in definitions)
    assert len(services) == (1 if "initialize" in definitions else 2)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, services + sockets)],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{directory}:"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (verified.stdout + verified.stderr, verified.returncode) == ("", 0)

    text = "".join(file.read_text() for file in [*services, *directory.glob("*.d/*")])
    programs = re.findall(r"^Exec\w+=[-@:+!]*(\S+)", text, re.MULTILINE)
    # The drop-in's empty lines take the package's own away.
    foreign = [path for path in programs if not path.startswith(str(nix.directory))]
    assert sorted(foreign) == ["/bin/sh", "/usr/bin/tang-attest"]
    assert "ExecStart=\nExecStart=" in text
    assert "ExecReload=\nExecReload=" in text


def test_the_service_gets_the_tpm_it_is_told_to_use(nix: Nix) -> None:
    """The device alone, by the group that owns it; another TCTI needs none, and the command is told as well."""
    service = "r.config.systemd.services.tang-attest.serviceConfig"
    for tcti, device in (("device:/dev/tpmrm0", "/dev/tpmrm0"), ("tabrmd:bus_name=x", None)):
        definitions = f'{SERVER}.settings.server_tpm = "{tcti}";'
        config, tpm, groups = nix.evaluate(
            ENABLED % definitions,
            f"[ {service} r.config.security.tpm2.enable r.config.users.users.tang-attest.extraGroups ]",
        )
        assert tpm is (device is not None)
        assert config.get("DeviceAllow") == ([f"{device} rw"] if device else None)
        assert config.get("PrivateDevices") is (False if device else None)
        assert config.get("SupplementaryGroups") == groups if device else groups == []


def test_the_unit_is_hardened_as_debians(nix: Nix, tmp_path: Path) -> None:
    """The unit is the one in packaging/, byte for byte, and the drop-in only says what to start, and how large."""
    directory = effective_units(nix, tmp_path, "")
    packaged = (ROOT / "packaging/systemd/tang-attest.service").read_text()
    assert (directory / "tang-attest.service").read_text() == packaged
    assert "ProtectSystem=strict" in packaged
    added = re.findall(
        r"^(\w+)=", (directory / "tang-attest.service.d/overrides.conf").read_text(), re.MULTILINE
    )
    assert set(added) == {"ExecReload", "ExecStart"}
    for limit in ("MemoryMax=1G", "TasksMax=512", "LimitNOFILE=8192", "OOMPolicy=continue"):
        assert limit in packaged.splitlines()


def test_more_workers_have_more_room(nix: Nix, tmp_path: Path) -> None:
    """The unit is for two; with eight there is memory for each."""
    directory = effective_units(nix, tmp_path, f"{SERVER}.settings.workers = 8;")
    text = (directory / "tang-attest.service.d/overrides.conf").read_text()
    assert "MemoryMax=3456M" in text.splitlines()
    assert "TasksMax=896" in text.splitlines()


def test_tls_files_come_by_credentials(nix: Nix, tmp_path: Path) -> None:
    """The service's user cannot read an ACME key; systemd hands it over, and the settings say where it then is."""
    definitions = f'{SERVER}.tls = {{ certificate = "/var/lib/acme/c.pem"; key = "/var/lib/acme/k.pem"; }};'
    settings = load_settings(config_file(nix, definitions), {})
    directory = effective_units(nix, tmp_path, definitions)
    text = (directory / "tang-attest.service.d/overrides.conf").read_text()
    loaded = dict(re.findall(r"^LoadCredential=(\w+):(\S+)$", text, re.MULTILINE))
    assert loaded == {"certificate": "/var/lib/acme/c.pem", "key": "/var/lib/acme/k.pem"}
    assert {settings.tls_certificate, settings.tls_key} == {
        Path("/run/credentials/tang-attest.service") / name for name in loaded
    }


def test_postgresql_is_set_up(nix: Nix, tmp_path: Path) -> None:
    """The database, its owner, the settings and the order of the units are one option."""
    definitions = f"{SERVER}.postgresql.enable = true;"
    server = nix.evaluate(
        ENABLED % definitions,
        "{ inherit (r.config.services.postgresql) enable ensureDatabases ensureUsers; }",
    )
    assert server["enable"] is True
    assert "tang-attest" in server["ensureDatabases"]
    assert [user["name"] for user in server["ensureUsers"]] == ["tang-attest"]
    settings = load_settings(config_file(nix, definitions), {})
    assert settings.database_url == "postgresql+asyncpg://tang-attest@/tang-attest?host=/run/postgresql"
    directory = effective_units(nix, tmp_path, definitions)
    for unit in ("tang-attest.service.d/overrides.conf", "tang-attest-init.service"):
        text = (directory / unit).read_text()
        # postgresql.service is up before databases and owners are made.
        assert "Requires=postgresql.target" in text
        assert "After=postgresql.target" in text
    targets = nix.evaluate(ENABLED % definitions, "builtins.attrNames r.config.systemd.targets")
    assert "postgresql" in targets


@pytest.mark.parametrize(("definitions", "ports"), [("", []), (f"{SERVER}.settings.port = 80;", [80])])
def test_the_firewall_opens_only_when_asked(nix: Nix, definitions: str, ports: list[int]) -> None:
    """The port is the server's."""
    opened = f"{SERVER}.openFirewall = {'true' if ports else 'false'};"
    assert (
        nix.evaluate(ENABLED % (definitions + opened), "r.config.networking.firewall.allowedTCPPorts")
        == ports
    )


def test_the_operators_command_runs(nix: Nix, tmp_path: Path) -> None:
    """It is packaging/tang-attest with this system's paths: it runs the server's program, with the service's settings."""
    expression = "map toString r.config.environment.systemPackages"
    command = Path(nix.realize(ENABLED % f'{SERVER}.settings.database = "sqlite:///x";', expression)[0])
    script = command / "bin/tang-attest"
    assert "/usr/lib" not in script.read_text()
    named = re.search(r'export TANG_ATTEST_CONFIG="\$\{TANG_ATTEST_CONFIG-(.+)\}"', script.read_text())
    assert named is not None
    assert load_settings(Path(named[1]), {}).database == "sqlite:///x"
    shown = subprocess.run(
        [script, "--state", tmp_path, "--version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert "tang-attest" in shown.stdout
    subprocess.run(["shellcheck", script], check=True, timeout=120)


@pytest.mark.parametrize(("host", "listens"), [("10.0.0.1", "10.0.0.1:7500"), ("::1", "[::1]:7500")])
def test_systemd_holds_the_port_when_asked(nix: Nix, host: str, listens: str) -> None:
    """The socket is at the address of the settings, and the service needs it."""
    definitions = f'{SERVER} = {{ socket.enable = true; settings.host = "{host}"; }};'
    units = nix.evaluate(ENABLED % definitions, "r.units")
    assert f"ListenStream={listens}\n" in units["tang-attest.socket"]
    assert "Requires=tang-attest.socket\n" in units["tang-attest.service"]


def test_the_server_takes_systemds_socket(nix: Nix, tmp_path: Path) -> None:
    """With the module's own file and command, started as systemd starts it."""
    state, address = tmp_path / "state", tmp_path / "socket"
    _, command = nix.realize(
        ENABLED % f"{SERVER}.socket.enable = true;",
        "r.config.systemd.services.tang-attest.serviceConfig.ExecStart",
    )
    program, *arguments = command.split()
    initialize(state)
    activated = subprocess.Popen(
        ["systemd-socket-activate", "--listen", address, program, "--state", state, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not address.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asked = ["curl", "-sS", "--max-time", "200", "--unix-socket", str(address), "http://server/adv"]
        advertised = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=220)
    finally:
        activated.terminate()
        activated.wait(120)
    assert "payload" in json.loads(advertised.stdout)
