"""boot.initrd.tang-attest: what it puts into stage 1, scripted and with systemd, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.nix.conftest import units_directory
from tests.nix.nix import EvaluationError, Nix
from tests.nix.stage_1 import ATTEST, DEVICE, machine_with
from tools.generate_nix import ROOT

BOTH = pytest.mark.parametrize("systemd", [False, True], ids=["scripted", "systemd"])
SPKI = "sha256//" + "A" * 43 + "="


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        (f"{ATTEST}.devices = lib.mkForce {{ }};", "no device. Name the volumes to open"),
        (f"{ATTEST}.devices.data = {{ }};", "there is no boot.initrd.luks.devices.data"),
        (f"{ATTEST}.network.enable = false;", "no network in stage 1"),
        ("boot.initrd.network.enable = false; boot.initrd.systemd.network.enable = false;", "no network in stage 1"),
        (f"{ATTEST}.tpm.modules = [ ];", "no TPM driver in stage 1"),
        (f'{ATTEST}.tpm.modules = [ "spi_bcm2835" ];', "no TPM driver in stage 1"),
        (f'{ATTEST}.server.urls = [ "https://10.0.0.1:7500" ];', "an https address needs spki"),
        (f'{ATTEST}.server.clientKey = "/k";', "clientCertificate and clientKey are given together"),
        (f'{ATTEST}.server.clientCertificate = "/c";', "clientCertificate and clientKey are given together"),
    ],
)  # fmt: skip
@BOTH
def test_what_cannot_work_is_said(nix: Nix, definitions: str, message: str, systemd: bool) -> None:
    """No device, no network, no TPM driver, a certificate that nobody can check: each is one clear sentence."""
    failed = nix.evaluate(machine_with(definitions, systemd=systemd), "r.failed")
    assert [text for text in failed if message in text and ATTEST in text], failed


@BOTH
@pytest.mark.parametrize(
    ("device", "refused", "words"),
    [
        ("", False, ["nohibernate"]),
        ("/dev/vdb1", True, ["nohibernate"]),
        ("/dev/mapper/other", True, ["nohibernate"]),
        ("/dev/mapper/root", False, []),
    ],
)
def test_nothing_outside_of_the_volumes_is_resumed(
    nix: Nix, device: str, refused: bool, words: list[str], systemd: bool
) -> None:
    """Swap elsewhere is refused at the evaluation; without swap on a volume the kernel resumes nothing at all."""
    module = machine_with(f'boot.resumeDevice = "{device}";', systemd=systemd)
    failed = nix.evaluate(module, "r.failed")
    assert bool([text for text in failed if "boot.resumeDevice: a writer of" in text]) is refused
    assert nix.evaluate(module, "r.config.boot.kernelParams") == words


def test_a_pool_and_hibernation_are_refused(nix: Nix) -> None:
    """The cap comes after the import of a pool, and so after the place for resuming."""
    pool = 'boot.initrd.clevis.devices.pool.secretFile = "/pool.jwe"; boot.resumeDevice = "/dev/mapper/root";'
    failed = nix.evaluate(machine_with(pool), "r.failed")
    assert [text for text in failed if "boot.resumeDevice: a writer of" in text]


@pytest.mark.parametrize("pool", [False, True])
def test_the_cap_is_the_last_before_resuming_and_mounting(nix: Nix, pool: bool) -> None:
    """After what opens volumes, also with mkAfter; after the import of pools, when boot.initrd.clevis opens one."""
    place = "postResumeCommands" if pool else "postDeviceCommands"
    definitions = f'boot.initrd.{place} = lib.mkMerge [ "open" (lib.mkAfter "import") ];'
    if pool:
        definitions += 'boot.initrd.clevis.devices.pool.secretFile = "/pool.jwe";'
    commands = nix.evaluate(
        machine_with(definitions), "{ inherit (r.config.boot.initrd) postDeviceCommands postResumeCommands; }"
    )
    other = commands.pop("postDeviceCommands" if pool else "postResumeCommands")
    assert "attest" not in other
    text = commands[place]
    assert text.index("open") < text.index("import") < text.index("clevis-attest-opened || fail")
    assert text.rstrip().endswith("attest_check /dev/mapper/root")


@pytest.mark.parametrize(
    ("file_systems", "checked"),
    [
        ("", ["/"]),
        ('fileSystems."/nix" = { device = "/dev/vg/nix"; fsType = "ext4"; };', ["/", "/nix"]),
        ('fileSystems."/home" = { device = "/dev/vg/home"; };', ["/"]),
        ('fileSystems."/boot" = { device = "/dev/vda1"; };', ["/"]),
        ('fileSystems."/data" = { device = "/dev/vg/data"; neededForBoot = true; };', ["/", "/data"]),
        ('fileSystems."/var" = { device = "tmpfs"; fsType = "tmpfs"; };', ["/"]),
        ('fileSystems."/nix" = { device = "pool/nix"; fsType = "zfs"; };', ["/"]),
        ('fileSystems."/" = lib.mkForce { device = "none"; fsType = "tmpfs"; };', []),
        (f"{ATTEST}.checkedFileSystems = [ ];", []),
    ],
)
def test_what_stage_1_mounts_is_checked(nix: Nix, file_systems: str, checked: list[str]) -> None:
    """Each file system that stage 1 mounts from a block device: before it is mounted, and before stage 2."""
    for systemd in (False, True):
        module = machine_with(file_systems, systemd=systemd)
        assert nix.evaluate(module, f"r.config.{ATTEST}.checkedFileSystems") == checked
    after = nix.evaluate(machine_with(file_systems), "r.config.boot.initrd.postMountCommands")
    mounted = re.findall(r"clevis-attest-root-check /mnt-root(\S*)", after.replace("\n", " "))
    assert [point or "/" for point in mounted] == checked


@pytest.mark.parametrize("roots", [["/"], ["/", "/nix"], []])
def test_systemds_units_check_what_is_mounted(nix: Nix, roots: list[str]) -> None:
    """The unit and each drop-in that runs before something of the root is run check every file system."""
    nixlist = " ".join(f'"{root}"' for root in roots)
    module = machine_with(f"{ATTEST}.checkedFileSystems = lib.mkForce [ {nixlist} ];", systemd=True)
    scripts = Path(nix.realize(module, "toString (builtins.head r.config.boot.initrd.systemd.packages)"))
    units = scripts / "lib/systemd/system"
    program = "/usr/lib/clevis-attest/clevis-attest-root-check"
    wanted = [f"{program} /sysroot{'' if root == '/' else root}" for root in roots]
    unit = (units / "clevis-attest-root.service").read_text()
    touch = "/bin/touch /run/clevis-attest/root-checked"
    assert re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE) == (wanted or [touch])
    for name in ("initrd-switch-root", "initrd-find-nixos-closure", "initrd-nixos-activation"):
        text = (units / f"{name}.service.d/41-clevis-attest-root.conf").read_text()
        assert re.findall(r"^ExecStartPre=(.*)$", text, re.MULTILINE) == wanted


def test_systemd_starts_after_a_look_at_what_nobody_measured(nix: Nix) -> None:
    """PID 1 is a script that execs the systemd of stage 1; its words for settings are NixOS' own."""
    contents = 'r.config.boot.initrd.systemd.contents."/init".source'
    systemd = "toString r.config.boot.initrd.systemd.package"
    source, package = nix.realize(machine_with("", systemd=True), f'[ "${{{contents}}}" ({systemd}) ]')
    text = Path(source).read_text()
    assert text.startswith("#!/bin/sh\n")
    assert text.rstrip().endswith(f'exec {package}/lib/systemd/systemd "$@"')
    assert "/usr/lib/systemd" not in text
    assert "attest_" not in text.replace("clevis-attest_", "")


@pytest.mark.parametrize("hibernates", [False, True])
def test_systemds_units_do_not_resume(nix: Nix, hibernates: bool) -> None:
    """Only from an opened volume, and then after the cap; every shell of stage 1 comes after the cap, too."""
    device = "/dev/mapper/root" if hibernates else ""
    module = machine_with(f'boot.resumeDevice = "{device}";', systemd=True)
    scripts = Path(nix.realize(module, "toString (builtins.head r.config.boot.initrd.systemd.packages)"))
    units = scripts / "lib/systemd/system"
    resume = units / "systemd-hibernate-resume.service.d"
    assert (resume / "40-clevis-attest-cap.conf").is_file()
    assert (resume / "41-clevis-attest-resume.conf").exists() is not hibernates
    for place in ("udev", "basic", "mount", "switch-root"):
        assert (units / f"breakpoint-pre-{place}.service.d/50-clevis-attest.conf").is_file()


@pytest.mark.parametrize("fallback", [False, True])
def test_a_key_file_without_a_prompt_is_refused(nix: Nix, fallback: bool) -> None:
    """Attestation answers a prompt; a volume with a key file has none, unless the file's failure leads to one."""
    volume = f'{DEVICE} = {{ keyFile = "/key"; fallbackToPassword = {str(fallback).lower()}; }};'
    failed = nix.evaluate(machine_with(volume), "r.failed")
    assert bool([text for text in failed if "nobody is asked" in text]) is not fallback


@BOTH
@pytest.mark.parametrize(
    "definitions",
    [
        "",
        f"{ATTEST}.tpm.raspberryPi = true;",
        f"{ATTEST}.network.enable = false; boot.initrd.network.enable = true;",
        f'{ATTEST}.tpm.modules = [ ]; boot.initrd.kernelModules = [ "tpm-tis-spi" ];',
        f'{ATTEST}.server = {{ urls = [ "https://10.0.0.1" ]; spki = "{SPKI}"; }};',
        f'{ATTEST}.server.urls = [ "http://10.0.0.1" ];',
        # A pool of ZFS, which NixOS' own module opens.
        f'{ATTEST}.devices = lib.mkForce {{ }}; boot.initrd.clevis.devices.pool.secretFile = "/pool.jwe";',
    ],
)
def test_what_works_is_not_refused(nix: Nix, definitions: str, systemd: bool) -> None:
    """The assertions look at what stage 1 will have, whoever put it there."""
    failed = nix.evaluate(machine_with(definitions, systemd=systemd), "r.failed")
    assert [text for text in failed if ATTEST in text] == []


CERTIFICATE = f'{ATTEST}.server = {{ clientCertificate = "/etc/m.crt"; clientKey = "/etc/m.key"; }};'
EXTLINUX = "boot.loader.supportsInitrdSecrets = false;"


def literal(directory: Path, key: str) -> str:
    """A certificate and a key by unquoted paths, which are copied to the store."""
    (directory / "m.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (directory / "m.key").write_text(f"-----BEGIN {key}-----\n")
    return f"{ATTEST}.server = {{ clientCertificate = {directory}/m.crt; clientKey = {directory}/m.key; }};"


@BOTH
def test_extlinux_takes_a_certificate_by_an_unquoted_path(nix: Nix, tmp_path: Path, systemd: bool) -> None:
    """Raspberry Pis mostly boot with extlinux, which adds no file to an initrd: the files are in it from the build."""
    server = literal(tmp_path, "TSS2 PRIVATE KEY")
    module = machine_with(f'{server} {ATTEST}.server.urls = [ "http://a" ]; {EXTLINUX}', systemd=systemd)
    assert nix.evaluate(module, "r.failed") == []
    where = {"client_cert": "/etc/clevis-attest/client.crt", "client_key": "/etc/clevis-attest/client.key"}
    bind = nix.evaluate(module, 'r.config.environment.etc."clevis-attest/bind.json".text')
    assert where.items() <= json.loads(bind).items()
    secrets = nix.evaluate(module, "builtins.mapAttrs (_: toString) r.config.boot.initrd.secrets")
    assert secrets == {
        where["client_cert"]: str(tmp_path / "m.crt"),
        where["client_key"]: str(tmp_path / "m.key"),
    }
    running = nix.evaluate(
        module, "builtins.mapAttrs (_: file: toString file.source) r.config.environment.etc"
    )
    assert running["clevis-attest/client.key"] == str(tmp_path / "m.key")


def test_extlinux_and_a_quoted_path_say_how(nix: Nix) -> None:
    """Before NixOS' own sentence, which does not know what the files are for."""
    failed = nix.evaluate(machine_with(f"{CERTIFICATE} {EXTLINUX}"), "r.failed")
    assert [text for text in failed if ATTEST in text and "have to be unquoted paths" in text]
    assert [text for text in failed if text.startswith("boot.initrd.secrets values must be unquoted")]


@pytest.mark.parametrize("loader", ["", EXTLINUX])
def test_a_key_outside_of_the_tpm_is_not_copied_to_the_store(nix: Nix, tmp_path: Path, loader: str) -> None:
    """Everybody on the machine can read the store; a key that only the TPM can use may be there."""
    module = machine_with(f"{literal(tmp_path, 'PRIVATE KEY')} {loader}")
    failed = nix.evaluate(module, "r.failed")
    assert [text for text in failed if f"{ATTEST}.server.clientKey: an unquoted path is copied" in text]


def test_a_vendors_kernel_of_a_pi_is_not_asked_for_tpm_crb(nix: Nix) -> None:
    """NixOS adds tpm-crb to the stage 1 with systemd, and a kernel without it ends the build."""
    modules = "r.config.boot.initrd.availableKernelModules"
    assert "tpm-crb" in nix.evaluate(machine_with("", systemd=True), modules)
    pi = f"{ATTEST}.tpm.raspberryPi = true;"
    assert set(nix.evaluate(machine_with(pi, systemd=True), modules)) == {"spi_bcm2835", "tpm_tis_spi"}
    forced = f"{pi} boot.initrd.systemd.tpm2.enable = true;"
    assert "tpm-crb" in nix.evaluate(machine_with(forced, systemd=True), modules)


CLEVIS = 'boot.initrd.clevis.devices.root.secretFile = "/root.jwe";'


def test_nixos_own_attempt_has_the_time_outs(nix: Nix) -> None:
    """A volume in boot.initrd.clevis.devices is tried once before its prompt, by a unit or by a line of stage 1."""
    definitions = f"{CLEVIS} {ATTEST}.timeouts.total = 7;"
    units = nix.evaluate(machine_with(definitions, systemd=True), "r.initrdUnits")
    text = units["cryptsetup-clevis-root.service"]
    assert 'Environment="CLEVIS_ATTEST_TOTAL_TIMEOUT=7"' in text
    assert "network-online.target" not in text
    commands = nix.evaluate(
        machine_with(f'{definitions} {DEVICE}.preOpenCommands = "the attempt";'),
        f"r.config.{DEVICE}.preOpenCommands",
    )
    before, after = commands.split("the attempt")
    assert "export " in before
    assert "CLEVIS_ATTEST_TOTAL_TIMEOUT=7" in before
    assert "clevis-attest-answer scripted root" in after
    assert "export" not in nix.evaluate(machine_with(""), f"r.config.{DEVICE}.preOpenCommands")
    plain = nix.evaluate(machine_with("", systemd=True), "r.initrdUnits")
    assert "cryptsetup-clevis-root.service" not in plain


@BOTH
def test_only_a_pool_waits_for_the_network(nix: Nix, systemd: bool) -> None:
    """A volume is tried again while its prompt is there, and a pool is not."""
    use_tang = "r.config.boot.initrd.clevis.useTang"
    assert nix.evaluate(machine_with(CLEVIS, systemd=systemd), use_tang) is False
    pool = 'boot.initrd.clevis.devices.pool.secretFile = "/pool.jwe";'
    assert nix.evaluate(machine_with(pool, systemd=systemd), use_tang) is True
    chosen = f"{pool} boot.initrd.clevis.useTang = false;"
    assert nix.evaluate(machine_with(chosen, systemd=systemd), use_tang) is False


def test_upstreams_loop_beside_ours_is_warned_of(nix: Nix) -> None:
    """boot.initrd.clevisLuksAskpass answers the same prompts twice a second; other volumes may be left to it."""
    loop = "boot.initrd.clevisLuksAskpass"
    for definitions, warned in {f"{loop}.enable = true;": True, "": False}.items():
        warnings = nix.evaluate(machine_with(definitions, systemd=True), "r.config.warnings")
        assert bool([text for text in warnings if f"Turn {loop} off" in text]) is warned
    package = f"r.config.{loop}.package.pname or r.config.{loop}.package.arguments.pname"
    assert nix.evaluate(machine_with("", systemd=True), package) == "clevis-pin-attest"


@pytest.mark.parametrize("enabled", [True, False])
def test_a_nixos_without_the_scripted_stage_1(nix: Nix, enabled: bool) -> None:
    """Its options are gone, so nothing of ours may define one: neither enabled nor imported and left alone."""
    certificate = f"{CERTIFICATE} {ATTEST}.timeouts.total = 7; {CLEVIS}"
    module = machine_with(certificate, systemd=True) if enabled else "{ }"
    found = nix.evaluate(module, "{ inherit (r) failed; units = r.initrdUnits; }", scripted=False)
    assert found["failed"] == []
    assert ("clevis-attest-answer.service" in found["units"]) is enabled
    gone = nix.evaluate(module, "r.options.boot.initrd ? postDeviceCommands", scripted=False)
    assert gone is False


def test_a_quote_comes_after_systemds_own_measurements(nix: Nix) -> None:
    """systemd 261 extends PCR 0 to 7, 9 and 12 to 14 in the initrd: values would differ by timing."""
    found = nix.evaluate(machine_with("", systemd=True), "r.initrdUnits")
    after = {
        name
        for line in found["clevis-attest-answer.service"].splitlines()
        if line.startswith("After=")
        for name in line.removeprefix("After=").split()
    }
    assert {
        "systemd-pcrnvdone.service",
        "systemd-pcrosseparator.service",
        "systemd-pcrphase-initrd.service",
    } <= after


def removed(apply: str, look: str) -> str:
    """Return a module with options as mkRemovedOptionModule leaves them: there and hidden.

    *apply* is what a reader gets of the value, *look* what the configuration says of the option ``name``.
    """
    return f"""
{{ lib, config, ... }}:
let
  names = [ "extraUtilsCommands" "extraUtilsCommandsTest" "postDeviceCommands" "postMountCommands" "postResumeCommands"
    "preFailCommands" ];
  gone = lib.mkOption {{ visible = false; type = lib.types.lines; default = ""; apply = {apply}; }};
in
{{
  options.boot.initrd = lib.genAttrs names (_: gone);
  config.assertions = map (name: {{ assertion = {look}; message = "boot.initrd.${{name}} was removed"; }}) names;
}}
"""


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    "gone",
    [
        removed('_: throw "it is gone"', "true"),
        removed("value: value", 'config.boot.initrd.${name} == ""'),
    ],
    ids=["read", "defined"],
)
def test_a_nixos_that_warns_of_removed_options(nix: Nix, gone: str, enabled: bool) -> None:
    """The usual way to remove an option leaves a hidden one behind, which nothing of ours may read or define."""
    settings = machine_with(f"{CERTIFICATE} {CLEVIS}", systemd=True) if enabled else "{ }"
    module = f"{{ imports = [ ({gone}) ({settings}) ]; }}"
    found = nix.evaluate(module, "{ inherit (r) failed; units = r.initrdUnits; }", scripted=False)
    assert found["failed"] == []
    assert ("clevis-attest-answer.service" in found["units"]) is enabled


@BOTH
@pytest.mark.parametrize(
    "definitions",
    [f"{ATTEST}.tpm.modules = [ ];", f'{ATTEST}.tpm.modules = [ ]; boot.initrd.kernelModules = [ "tpm" ];'],
)
def test_drivers_of_nixos_own_say_nothing_about_the_tpm(nix: Nix, definitions: str, systemd: bool) -> None:
    """The stage 1 with systemd always has tpm-crb and tpm-tis."""
    failed = nix.evaluate(machine_with(definitions, systemd=systemd), "r.failed")
    assert [text for text in failed if "no TPM driver in stage 1" in text]


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        (f"{ATTEST}.capPcr = 16;", f"{ATTEST}.capPcr"),
        (f"{ATTEST}.retryPause = 0;", f"{ATTEST}.retryPause"),
        (f'{ATTEST}.server.spki = "sha256//short";', f"{ATTEST}.server.spki"),
        (f'{ATTEST}.server.urls = [ "10.0.0.1:7500" ];', f"{ATTEST}.server.urls"),
        (f'{ATTEST}.server.thumbprints = [ "no" ];', f"{ATTEST}.server.thumbprints"),
        (f'{ATTEST}.server.clientKey = "key.pem";', f"{ATTEST}.server.clientKey"),
        (f'{ATTEST}.deviceName = "a machine";', f"{ATTEST}.deviceName"),
        (f"{ATTEST}.devices.root.secretfile = ./x;", f"{ATTEST}.devices.root.secretfile"),
    ],
)
def test_a_wrong_option_stops_the_evaluation(nix: Nix, definition: str, complaint: str) -> None:
    """PCR 16 can be reset by anybody, so it is no cap; the others are typing errors."""
    with pytest.raises(EvaluationError, match=re.escape(complaint)):
        nix.evaluate(machine_with(definition), f"r.config.{ATTEST}")


def test_a_login_in_stage_1_is_warned_of(nix: Nix) -> None:
    """A shell in an approved initrd can run the pin."""
    for definitions, warned in {"boot.initrd.network.ssh.enable = true;": True, "": False}.items():
        warnings = nix.evaluate(machine_with(definitions), "r.config.warnings")
        assert bool([text for text in warnings if "can open every volume" in text]) is warned


@pytest.mark.parametrize(
    ("definitions", "modules"),
    [("", {"tpm_crb", "tpm_tis"}), (f"{ATTEST}.tpm.raspberryPi = true;", {"spi_bcm2835", "tpm_tis_spi"})],
)
def test_the_tpms_drivers_are_there(nix: Nix, definitions: str, modules: set[str]) -> None:
    """A Raspberry Pi needs its SPI controller's, and its kernel has no tpm_crb, which would end the build."""
    found = set(nix.evaluate(machine_with(definitions), "r.config.boot.initrd.availableKernelModules"))
    assert modules <= found
    assert not {"tpm_crb", "spi_bcm2835"} <= found


def test_nixos_own_clevis_has_the_pin(nix: Nix) -> None:
    """boot.initrd.clevis brings clevis' programs; its package is ours, and another one can be given."""
    clevis = "r.config.boot.initrd.clevis"
    assert nix.evaluate(machine_with(""), f"[ {clevis}.enable {clevis}.useTang ]") == [True, False]
    package = f"{clevis}.package.pname or {clevis}.package.arguments.pname"
    assert nix.evaluate(machine_with(""), package) == "clevis-pin-attest"
    assert nix.evaluate(machine_with("boot.initrd.clevis.package = pkgs.clevis;"), package) == "clevis"


def test_the_network_does_not_hold_the_prompt_up(nix: Nix) -> None:
    """Scripted: two seconds for each card, then in the background, which is what these options of udhcpc mean."""
    network = nix.evaluate(machine_with(""), "r.config.boot.initrd.network.udhcpc.extraArgs")
    assert " ".join(network) == "-t 2 -T 1 -b"
    helped = subprocess.run(["busybox", "udhcpc", "--help"], capture_output=True, text=True, check=False)
    for meaning in (
        "-t N\t\tSend up to N discover packets",
        "-T SEC\t\tPause between packets",
        "-b\t\tBackground if lease",
    ):
        assert meaning in helped.stdout + helped.stderr  # busybox 1.38 prints it to the first


def test_systemds_network_asks_on_every_card(nix: Nix) -> None:
    """With systemd: DHCP where nothing else configures a card."""
    expression = 'r.config.boot.initrd.systemd.network.networks."zz-tang-attest"'
    found = nix.evaluate(
        machine_with("", systemd=True), f"{{ inherit ({expression}) matchConfig networkConfig; }}"
    )
    assert found == {"matchConfig": {"Kind": "!*", "Type": "ether"}, "networkConfig": {"DHCP": "yes"}}


@BOTH
def test_stage_1_has_the_scripts_and_the_settings(nix: Nix, tmp_path: Path, systemd: bool) -> None:
    """The same files in both kinds of stage 1, where the scripts look for them."""
    jwe = tmp_path / "root.jwe"
    jwe.write_text("a JWE")
    definitions = f"{ATTEST} = {{ capPcr = 11; retryPause = 9; shellWithoutTpm = true; espIsMeasured = true; devices.root.secretFile = {jwe}; }};"
    where = "r.config.boot.initrd.systemd.contents" if systemd else "r.config.boot.initrd.extraFiles"
    files = nix.realize(
        machine_with(definitions, systemd=systemd),
        f'builtins.mapAttrs (_: file: "${{file.source}}") {{ inherit ({where}) "/usr/lib/clevis-attest" "/etc/clevis-attest"; }}',
    )
    scripts, etc = Path(files["/usr/lib/clevis-attest"]), Path(files["/etc/clevis-attest"])
    assert {path.name: path.read_text() for path in etc.iterdir()} == {
        "cap-pcr": "11\n",
        "pause": "9\n",
        "devices": "root /dev/disk/by-uuid/1234\n",
        "root.jwe": "a JWE",
        "shell-without-tpm": "",
        "esp-is-measured": "",
    }
    for name in (
        "cap",
        "close",
        "mark",
        "root-check",
        "opened",
        "before-shell",
        "wait-network",
        "answer",
        "init",
    ):
        script = scripts / f"clevis-attest-{name}"
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/bin/sh\n")
        subprocess.run(["shellcheck", script], check=True, timeout=120)
        subprocess.run(["busybox", "ash", "-n", script], check=True, timeout=120)
    assert (scripts / "clevis-attest-cap").read_text() == (ROOT / "initrd/clevis-attest-cap").read_text()
    assert "boot.initrd.tang-attest.shellWithoutTpm" in (scripts / "clevis-attest-before-shell").read_text()


def test_each_kind_of_stage_1_gets_its_own_only(nix: Nix) -> None:
    """NixOS refuses preLVMCommands and the like with systemd, and units without."""
    commands = "{ inherit (r.config.boot.initrd) extraUtilsCommandsTest postMountCommands preFailCommands; }"
    scripted = nix.evaluate(machine_with(""), commands)
    assert all("attest" in text for text in scripted.values())
    with_systemd = nix.evaluate(machine_with("", systemd=True), commands)
    assert not any("attest" in text for text in with_systemd.values())
    opened = f"{{ inherit (r.config.{DEVICE}) preOpenCommands postOpenCommands; }}"
    assert set(nix.evaluate(machine_with("", systemd=True), opened).values()) == {""}
    assert not [unit for unit in nix.evaluate(machine_with(""), "r.initrdUnits") if "attest" in unit]


def test_bind_json_has_the_configuration(nix: Nix) -> None:
    """The configuration for `clevis luks bind` is in one file, without a token."""
    thumbprint = "t" * 43
    server = f'{{ urls = [ "https://10.0.0.1:7500" ]; spki = "{SPKI}"; thumbprints = [ "{thumbprint}" ]; }}'
    module = machine_with(f'{ATTEST}.server = {server}; networking.hostName = "pi-b";')
    text = nix.evaluate(module, 'r.config.environment.etc."clevis-attest/bind.json".text')
    assert json.loads(text) == {
        "url": ["https://10.0.0.1:7500"], "name": "pi-b", "spki": SPKI, "thp": [thumbprint],
    }  # fmt: skip


@BOTH
def test_a_client_certificate_comes_into_stage_1(nix: Nix, systemd: bool) -> None:
    """Both files outside of the store, OpenSSL's provider for a key in the TPM, and where it is."""
    files = {"client_cert": "/etc/m.crt", "client_key": "/etc/m.key"}
    options = f'{{ urls = [ "https://a" ]; spki = "{SPKI}"; clientCertificate = "/etc/m.crt"; clientKey = "/etc/m.key"; }}'
    module = machine_with(f"{ATTEST}.server = {options};", systemd=systemd)
    bind = nix.evaluate(module, 'r.config.environment.etc."clevis-attest/bind.json".text')
    assert files.items() <= json.loads(bind).items()
    assert nix.evaluate(module, "r.config.boot.initrd.secrets") == {name: name for name in files.values()}
    provider, modules, commands, paths = nix.realize(
        module,
        f"""[ "${{r.pkgs.tpm2-openssl}}/lib/ossl-modules/tpm2.so"
          ({"r.config.boot.initrd.systemd.services.clevis-attest-answer.environment.OPENSSL_MODULES" if systemd else f"r.config.{DEVICE}.preOpenCommands"})
          r.config.boot.initrd.extraUtilsCommands (map toString r.config.boot.initrd.systemd.storePaths) ]""",
    )
    assert Path(provider).is_file()
    if systemd:
        assert (modules, commands) == (str(Path(provider).parent), "")
        assert provider in paths
    else:
        assert "OPENSSL_MODULES=$extraUtils/lib setsid" in modules
        assert commands.split() == ["cp", "-p", provider, "$out/lib/tpm2.so"]
    bare = machine_with("", systemd=systemd)
    assert nix.evaluate(bare, "r.config.boot.initrd.secrets") == {}
    assert nix.evaluate(bare, "r.config.boot.initrd.extraUtilsCommands") == ""


def test_systemd_accepts_stage_1s_units(nix: Nix, tmp_path: Path) -> None:
    """systemd-analyze has nothing to say about the units of stage 1 and the drop-ins of its shells."""
    expression = (
        '[ r.initrdUnits "${r.config.boot.initrd.systemd.contents."/usr/lib/clevis-attest".source}" ]'
    )
    units, scripts = nix.realize(machine_with("", systemd=True), expression)
    packaged = Path(scripts) / "lib/systemd/system"
    files = {
        str(path.relative_to(packaged)): path.read_text() for path in packaged.rglob("*") if path.is_file()
    }
    assert {"clevis-attest-cap.service", "clevis-attest-root.service"} <= set(files)
    # NixOS enables the packaged unit by a link, which is all that its own text of it is for.
    assert units.pop("clevis-attest-cap.service").split() == ["[Unit]", "[Service]"]
    wanted = "r.config.boot.initrd.systemd.services.clevis-attest-cap.wantedBy"
    assert nix.evaluate(machine_with("", systemd=True), wanted) == ["initrd.target"]
    files |= {name: text for name, text in units.items() if "attest" in name}
    assert "clevis-attest-answer.service" in files
    # On this machine the scripts are in the store only.
    files = {name: text.replace("/usr/lib/clevis-attest", scripts) for name, text in files.items()}
    directory = units_directory(tmp_path, files)
    names = [
        "clevis-attest-answer",
        "clevis-attest-cap",
        "clevis-attest-root",
        "emergency",
        "rescue",
        "debug-shell",
    ]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(f"{name}.service" for name in names)],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{directory}:"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (verified.stdout + verified.stderr, verified.returncode) == ("", 0)


def test_no_shell_while_a_key_is_on_its_way(nix: Nix) -> None:
    """The unit that asks is ended before a shell begins: both Conflicts and Before, for each shell that stage 1 has."""
    text = nix.evaluate(machine_with("", systemd=True), 'r.initrdUnits."clevis-attest-answer.service"')
    for key in ("Before", "Conflicts"):
        named = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
        assert {
            "debug-shell.service",
            "emergency.service",
            "rescue.service",
            "initrd-switch-root.target",
        } <= set(" ".join(named).split())


def test_systemds_stage_1_has_the_programs(nix: Nix) -> None:
    """Each program that a script of ours calls is in /bin of stage 1: from us, or from NixOS' own list."""
    ours = set(
        nix.evaluate(
            machine_with("", systemd=True), "builtins.attrNames r.config.boot.initrd.systemd.extraBin"
        )
    )
    nixos = {"clevis", "curl", "umount", "mount"} | {"modprobe"}  # boot.initrd.clevis, boot.initrd.systemd
    coreutils = {"cat", "mkdir", "mv", "printf", "readlink", "rm", "sleep", "sha256sum", "sort", "tr"}
    called = {
        "bash", "cat", "clevis", "cryptsetup", "curl", "dmsetup", "grep", "ip", "jose", "mkdir", "modprobe", "mv", "readlink",
        "rm", "sed", "sha256sum", "sleep", "sort", "systemd-reply-password", "tpm2", "tr", "umount",
    }  # fmt: skip
    assert called - ours - nixos - coreutils == {"bash"}  # boot.initrd.systemd.initrdBin
    assert "tpm2-wrapped" in str(
        nix.evaluate(machine_with("", systemd=True), "map toString r.config.boot.initrd.systemd.storePaths")
    )


@pytest.mark.parametrize("missing", ["tpm2", "clevis-decrypt-attest", "jose", "cryptsetup", ""])
def test_a_stage_1_without_a_program_is_not_built(nix: Nix, tmp_path: Path, missing: str) -> None:
    """A program that the scripted stage 1 lacks ends its build, with its name, and not the next boot."""
    check = nix.evaluate(machine_with(""), "r.config.boot.initrd.extraUtilsCommandsTest")
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtss2-tcti-device.so.0").touch()
    listed = re.search(r"for attest_program in (.*?); do", check, re.DOTALL)
    assert listed
    for program in set(listed[1].replace("\\", " ").split()) - {missing}:
        (tmp_path / "bin" / program).touch(0o755)
    script = f"set -eu\nout={tmp_path}\n{check}"
    built = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (built.returncode != 0) is bool(missing)
    assert (f"stage 1 has no {missing}\n" in built.stderr) is bool(missing)
