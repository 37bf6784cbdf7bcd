"""The one secret of a server."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tang_attest.errors import Conflict, Malformed, NotFound, TangAttestError, Unavailable
from tang_attest.keys.secret import CREDENTIAL, ServerSecret, create_secret, load_secret


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def code(directory: Path) -> str:
    """The code with which the secret in *directory* is refused."""
    with pytest.raises(TangAttestError) as refused:
        load_secret(directory)
    return refused.value.code


def test_what_is_made_is_what_is_loaded(tmp_path: Path) -> None:
    """Two processes derive the same keys."""
    made = create_secret(tmp_path)
    assert load_secret(tmp_path).derive("x") == made.derive("x")
    assert stat.S_IMODE((tmp_path / "kek").stat().st_mode) == 0o400


def test_derived_keys_are_what_the_documents_say() -> None:
    """HKDF-SHA256 without salt, with the label: replicas of another version derive the same."""
    key = bytes(range(32))
    for label in ("seal", "session", "nonce"):
        hkdf = HKDF(hashes.SHA256(), 32, None, f"tang-attest/v1 {label}".encode())
        assert ServerSecret(key).derive(label) == hkdf.derive(key)


def test_purposes_do_not_share_a_key() -> None:
    """Nor is any of them the secret itself."""
    secret = ServerSecret(bytes(range(32)))
    derived = {secret.derive(label) for label in ("seal", "session", "nonce", "")}
    assert len(derived | {bytes(range(32))}) == 5


def test_each_is_new(tmp_path: Path) -> None:
    """Two states have nothing in common."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert create_secret(tmp_path / "one").derive("x") != create_secret(tmp_path / "two").derive("x")


def test_it_is_never_printed() -> None:
    """A traceback or a log line that holds the object holds no secret."""
    secret = ServerSecret(b"k" * 32)
    assert repr(secret) == str(secret) == f"{secret}" == "ServerSecret(...)"
    assert not hasattr(secret, "__dict__")


def test_one_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    """Everything sealed under it would be lost."""
    create_secret(tmp_path)
    before = (tmp_path / "kek").read_bytes()
    with pytest.raises(Conflict) as refused:
        create_secret(tmp_path)
    assert refused.value.code == "state-exists"
    assert (tmp_path / "kek").read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A writer of the directory cannot have the secret written elsewhere."""
    (tmp_path / "kek").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        create_secret(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_secret_that_cannot_be_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file would look like a state."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable) as refused:
        create_secret(tmp_path)
    assert refused.value.sentence == f"File {tmp_path}/kek cannot be written: No space left on device."
    assert list(tmp_path.iterdir()) == []


def test_no_directory(tmp_path: Path) -> None:
    """Without one, there is neither a secret nor a place for one."""
    with pytest.raises(NotFound) as refused:
        create_secret(tmp_path / "no")
    assert refused.value.code == "file-unreadable"
    assert code(tmp_path / "no") == "state-missing"


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o402, 0o410, 0o777])
def test_others_must_not_read_it(tmp_path: Path, mode: int) -> None:
    """Any permission for anybody else stops the server, with the command that mends it."""
    create_secret(tmp_path)
    (tmp_path / "kek").chmod(mode)
    with pytest.raises(Malformed) as refused:
        load_secret(tmp_path)
    assert refused.value.code == "setting-invalid"
    assert f"run 'chmod 0400 {tmp_path}/kek'" in refused.value.sentence


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff\xfe",
        base64.urlsafe_b64encode(bytes(31)),
        base64.urlsafe_b64encode(bytes(33)),
        base64.urlsafe_b64encode(bytes(32)) + b"!",
        base64.urlsafe_b64encode(bytes(32))[:-1],
        base64.urlsafe_b64encode(bytes(32)) * 20,
        b"{}",
    ],
)
def test_not_a_secret(tmp_path: Path, content: bytes) -> None:
    """A file that is not 32 bytes in base64url is refused; what it holds is not repeated."""
    (tmp_path / "kek").write_bytes(content)
    (tmp_path / "kek").chmod(0o400)
    assert code(tmp_path) == "key-malformed"


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    """An error that is none of the expected ones still has a name."""
    (tmp_path / "kek").mkdir()
    assert code(tmp_path) == "file-unreadable"


# --- systemd credentials -----------------------------------------------------------------------------------------


@pytest.fixture
def credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service with ``LoadCredential=tang-attest.kek:...``."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    (directory / CREDENTIAL).write_bytes(base64.urlsafe_b64encode(b"c" * 32))
    (directory / CREDENTIAL).chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    return directory / CREDENTIAL


def test_a_credential_replaces_the_file(tmp_path: Path, credential: Path) -> None:
    """With or without a file: what the service manager gives counts."""
    expected = ServerSecret(b"c" * 32).derive("x")
    assert load_secret(tmp_path).derive("x") == expected
    create_secret(tmp_path)
    assert load_secret(tmp_path).derive("x") == expected
    credential.unlink()
    assert load_secret(tmp_path).derive("x") != expected


def test_a_credential_with_an_acl(tmp_path: Path, credential: Path) -> None:
    """systemd lets the service's user read it with an ACL, whose mask looks like the group's permission."""
    credential.chmod(0o440)
    assert load_secret(tmp_path).derive("x") == ServerSecret(b"c" * 32).derive("x")
    credential.chmod(0o444)
    assert code(tmp_path) == "setting-invalid"


def test_credentials_without_ours(tmp_path: Path, credential: Path) -> None:
    """A service with other credentials has its file."""
    credential.rename(credential.with_name("other"))
    made = create_secret(tmp_path)
    assert load_secret(tmp_path).derive("x") == made.derive("x")
