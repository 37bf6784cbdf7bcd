"""Building the initrd: what is missing is found now, not at the next boot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boot.images import disk
from tests.boot.images.base import base_tree, suites
from tests.boot.images.provider import PROVIDER_NEEDS, client_files, provider
from tests.boot.images.tree import (
    ROOT_UUID,
    Variant,
    chroot,
    list_initrd,
    make_initrd,
    module_only_kernel,
    prepare,
    without,
    without_tpm_drivers,
)

VOLUME_UUID = "0f6e5a3c-0000-4000-8000-00000000000c"

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module", params=suites())
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root tree in which an initrd can be built, of each supported Debian."""
    path = tmp_path_factory.mktemp("hook") / "root"
    prepare(path, base_tree(suite=request.param)[0], Variant())
    return path


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("usr/bin/tpm2", "the program tpm2 is missing"),
        ("usr/bin/clevis-decrypt-attest", "the program clevis-decrypt-attest is missing"),
        (
            "usr/lib/clevis-attest/clevis-attest-functions",
            "/usr/lib/clevis-attest/clevis-attest-functions is missing",
        ),
        ("usr/lib/clevis-attest/clevis-attest-cap", "/usr/lib/clevis-attest/clevis-attest-cap is missing"),
        (
            "usr/lib/clevis-attest/clevis-attest-root-check",
            "/usr/lib/clevis-attest/clevis-attest-root-check is missing",
        ),
        ("usr/lib/clevis-attest/initrd-decrypt", "/usr/lib/clevis-attest/initrd-decrypt is missing"),
        (
            "usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
            "the library libtss2-tcti-device.so.0 is missing",
        ),
        ("usr/share/initramfs-tools/scripts/local-top/clevis", "is clevis-initramfs installed?"),
    ],
)
def test_a_missing_program_fails_the_build(root: Path, tmp_path: Path, missing: str, said: str) -> None:
    """No image is made, and the message names what is missing."""
    with without(root / missing), pytest.raises(AssertionError, match="E: clevis-attest:") as failure:
        make_initrd(root, tmp_path / "initrd")
    assert said in str(failure.value)
    assert not (tmp_path / "initrd").exists()


def test_an_image_has_no_python(root: Path, tmp_path: Path) -> None:
    """Prediction is for the running system; the pin in the initrd is Bash."""
    make_initrd(root, tmp_path / "initrd")
    names = list_initrd(root, tmp_path / "initrd")
    assert "usr/lib/clevis-attest/clevis-attest-functions" in names
    assert not [name for name in names if "python" in name or name.endswith(".py")]


def test_a_kernel_without_a_tpm_driver_fails_the_build(root: Path, tmp_path: Path) -> None:
    """A cloud kernel has the drivers built in; take them out of its list."""
    with without_tpm_drivers(root), pytest.raises(AssertionError, match="has no TPM driver"):
        make_initrd(root, tmp_path / "initrd")


@pytest.mark.parametrize(
    ("driver", "suffix"), [("tpm_tis_spi", ".xz"), ("tpm_tis", ".zst"), ("tpm_crb", ""), ("tpm_ftpm_tee", ".xz")]
)  # fmt: skip
def test_a_driver_that_is_a_module_is_put_into_the_image(
    root: Path, tmp_path: Path, driver: str, suffix: str
) -> None:
    """Kernels of the Raspberry Pi have each TPM driver as a compressed module."""
    with module_only_kernel(root, driver, suffix):
        make_initrd(root, tmp_path / "initrd")
        names = list_initrd(root, tmp_path / "initrd")
    assert [name for name in names if f"/{driver}.ko" in name]


@contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """The file has another text for a while, or is there for a while."""
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)


@contextmanager
def volume(root: Path, directory: Path, attest: Mapping[str, object]) -> Iterator[None]:
    """A volume in crypttab that is bound with this configuration of the pin."""
    image = root / "var/tmp/volume.img"
    payload = directory / "payload"
    disk.filesystem(payload, 4096)
    disk.luks_image(image, payload, VOLUME_UUID)
    import_token(image, {"url": ["https://tang"], **attest})
    crypttab = root / "etc/crypttab"
    before = crypttab.read_text()
    crypttab.write_text("root /var/tmp/volume.img none luks,initramfs\n")
    try:
        yield
    finally:
        crypttab.write_text(before)
        image.unlink()


def test_the_ca_that_a_binding_names_is_put_into_the_image(root: Path, tmp_path: Path) -> None:
    """Found in the volume of crypttab; if the file is not there, the build fails."""
    certificate = root / "etc/ssl/our-ca.pem"
    with volume(root, tmp_path, {"ca": "/etc/ssl/our-ca.pem"}):
        with pytest.raises(AssertionError, match=r"/etc/ssl/our-ca\.pem is missing"):
            make_initrd(root, tmp_path / "initrd")
        certificate.parent.mkdir(exist_ok=True)
        certificate.write_text("a certificate\n")
        make_initrd(root, tmp_path / "initrd")
        assert "etc/ssl/our-ca.pem" in list_initrd(root, tmp_path / "initrd")


def test_the_client_certificate_is_put_into_the_image(root: Path, tmp_path: Path) -> None:
    """With its key; a key that anybody with the image could use is warned of."""
    with volume(root, tmp_path, {"client_cert": "/etc/ssl/m.crt", "client_key": "/etc/ssl/m.key"}):
        with pytest.raises(AssertionError, match=r"/etc/ssl/m\.crt is missing"):
            make_initrd(root, tmp_path / "initrd")
        with client_files(root, "PRIVATE KEY"):
            said = make_initrd(root, tmp_path / "initrd")
            assert "W: clevis-attest: /etc/ssl/m.key is a private key: who can read the image has it" in said
            names = list_initrd(root, tmp_path / "initrd")
        assert {"etc/ssl/m.crt", "etc/ssl/m.key"} <= set(names)
        assert not [name for name in names if Path(name).name == "tpm2.so"]


def test_the_provider_of_a_key_in_the_tpm_is_put_into_the_image(root: Path, tmp_path: Path) -> None:
    """With the libraries that it needs; without it the build fails."""
    named = {"client_cert": "/etc/ssl/m.crt", "client_key": "/etc/ssl/m.key"}
    with volume(root, tmp_path, named), client_files(root, "TSS2 PRIVATE KEY"):
        with pytest.raises(AssertionError, match="install tpm2-openssl"):
            make_initrd(root, tmp_path / "initrd")
        with provider(root):
            said = make_initrd(root, tmp_path / "initrd")
    assert "is a private key" not in said
    names = {Path(name).name for name in list_initrd(root, tmp_path / "initrd")}
    assert set(PROVIDER_NEEDS) <= names


def read_initrd(root: Path, initrd: Path, name: str) -> str:
    """A file of an initrd."""
    with tempfile.TemporaryDirectory(dir=root / "tmp") as directory:
        shutil.copy(initrd, directory)
        place = Path("/tmp") / Path(directory).name
        return chroot(
            root, f"unmkinitramfs {place}/{initrd.name} {place}/unpacked; cat {place}/unpacked/{name}"
        )


def test_the_cap_comes_before_the_hibernation_image(root: Path, tmp_path: Path) -> None:
    """initramfs-tools' own order, made by the real tsort; a build in which it came out otherwise fails."""
    make_initrd(root, tmp_path / "initrd")
    order = read_initrd(root, tmp_path / "initrd", "scripts/local-premount/ORDER")
    assert order.index("/scripts/local-premount/clevis-attest-cap ") < order.index(
        "/scripts/local-premount/resume "
    )
    cap = root / "usr/share/initramfs-tools/scripts/local-premount/clevis-attest-cap"
    later = cap.read_text().replace('PREREQ=""', 'PREREQ="resume"', 1)
    with (
        changed(cap, later),
        pytest.raises(AssertionError, match="would not run before local-premount/resume"),
    ):
        make_initrd(root, tmp_path / "initrd")


def test_the_image_knows_its_volumes(root: Path, tmp_path: Path) -> None:
    """By their headers; of a volume that is not there it knows the UUID of crypttab."""
    make_initrd(root, tmp_path / "initrd")
    known = read_initrd(root, tmp_path / "initrd", "etc/clevis-attest/volumes")
    assert known == f"{ROOT_UUID} - - - -\n"
    with volume(root, tmp_path, {}):
        make_initrd(root, tmp_path / "initrd")
        uuid, cipher, bits, sector, digest = read_initrd(
            root, tmp_path / "initrd", "etc/clevis-attest/volumes"
        ).split()
    assert (uuid, cipher, bits, sector) == (VOLUME_UUID, "aes-xts-plain64", "512", "4096")
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_an_image_for_any_machine_says_so(root: Path, tmp_path: Path) -> None:
    """A volume by its path, which is not there: not even its UUID is known."""
    crypttab = root / "etc/crypttab"
    with changed(crypttab, "root /dev/nothing none luks,initramfs\n"):
        said = make_initrd(root, tmp_path / "initrd")
    assert "this image does not know its volumes" in said
    assert "etc/clevis-attest/volumes" not in list_initrd(root, tmp_path / "initrd")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("etc/initramfs-tools/conf.d/resume", "RESUME=/dev/vdb\n", "RESUME=/dev/vdb is on none of the encrypted volumes"),
        ("etc/initramfs-tools/conf.d/resume", "RESUME=UUID=0f6e5a3c-1\n", "RESUME=UUID=0f6e5a3c-1 is on none"),
        ("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet resume=/dev/vdb"\n', "resume=/dev/vdb on the kernel's"),
        ("etc/kernel/cmdline", "root=/dev/mapper/root resume=PARTUUID=12-3 quiet\n", "resume=PARTUUID=12-3 on the kernel's"),
    ],
)  # fmt: skip
def test_hibernation_outside_the_volumes_fails_the_build(
    root: Path, tmp_path: Path, file: str, text: str, said: str
) -> None:
    """Asked for in initramfs-tools' settings or on the kernel's command line: the message says what to change."""
    with changed(root / file, text), pytest.raises(AssertionError, match="E: clevis-attest:") as failure:
        make_initrd(root, tmp_path / "initrd")
    assert said in str(failure.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("etc/initramfs-tools/conf.d/resume", "RESUME=/dev/mapper/root\n"),
        (
            "etc/default/grub",
            "#GRUB_CMDLINE_LINUX=resume=/dev/vdb\nGRUB_CMDLINE_LINUX='resume=/dev/vdb noresume'\n",
        ),
    ],
)
def test_hibernation_inside_the_volumes_is_built(root: Path, tmp_path: Path, file: str, text: str) -> None:
    """On a volume of crypttab, or switched off."""
    with changed(root / file, text):
        make_initrd(root, tmp_path / "initrd")


def test_a_plain_swap_that_nobody_asked_for_is_left_out(root: Path, tmp_path: Path) -> None:
    """initramfs-tools takes the biggest swap by itself: a build that worked goes on working, without it."""
    text = """#!/bin/sh
[ "$1" != prereqs ] || exit 0
echo RESUME=/dev/vdb >"$DESTDIR/conf/conf.d/zz-resume-auto"
"""
    # As initramfs-tools' own hook does where /proc/swaps has one; a chroot has none.
    stock = root / "usr/share/initramfs-tools/hooks/resume"
    assert "zz-resume-auto" in stock.read_text()
    with changed(stock, text):
        said = make_initrd(root, tmp_path / "initrd")
    assert "W: clevis-attest: no hibernation: the swap /dev/vdb is on none of the encrypted volumes" in said
    assert read_initrd(root, tmp_path / "initrd", "conf/conf.d/zz-resume-auto") == "RESUME=none\n"


def import_token(image: Path, attest: dict[str, object]) -> None:
    """A clevis token whose JWE has this configuration of the attest pin; nobody has its key."""
    key = image.with_name("key.jwk")
    subprocess.run(["jose", "jwk", "gen", "-i", '{"alg":"A256GCM"}', "-o", str(key)], check=True)
    template = {"protected": {"alg": "dir", "enc": "A256GCM", "clevis": {"pin": "attest", "attest": attest}}}
    command = ["jose", "jwe", "enc", "-I-", "-k", str(key), "-i", json.dumps(template)]
    jwe = subprocess.run(command, input=b"secret", check=True, capture_output=True).stdout
    token = {"type": "clevis", "keyslots": ["0"], "jwe": json.loads(jwe)}
    command = ["cryptsetup", "token", "import", str(image)]
    subprocess.run(command, input=json.dumps(token).encode(), check=True, capture_output=True)


def test_statements_are_put_into_the_image_with_what_looks_for_them(root: Path, tmp_path: Path) -> None:
    """One that the pin would not send is left out, and the build says so; other files of the directory stay away."""
    directory = root / "etc/clevis-attest"
    small, large, other = (directory / f"{name}.jws" for name in ("a.tang-attest", "b.tang-attest", "other"))
    with changed(small, "a.b.c\n"), changed(large, "A" * 20000), changed(other, "a.b.c\n"):
        said = make_initrd(root, tmp_path / "initrd")
    assert "W: clevis-attest: /etc/clevis-attest/b.tang-attest.jws is larger than 16384 bytes" in said
    names = list_initrd(root, tmp_path / "initrd")
    assert {name for name in names if name.endswith(".jws")} == {"etc/clevis-attest/a.tang-attest.jws"}
    assert "usr/lib/clevis-attest/clevis-attest-signed-functions" in names
    # Busybox of Debian has both; without busybox the hook copies them.
    assert "usr/bin/busybox" in names
