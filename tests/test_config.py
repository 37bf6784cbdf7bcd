"""Settings: where they come from, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tang_attest.config import MailSettings, NtfySettings, Settings, load_settings
from tang_attest.errors import Malformed, NotFound
from tang_attest.ports.notices import NoticeKind
from tang_attest.store.database.engine import parse_url
from tang_attest.store.database.moved import place_of


def refusal(**settings: Any) -> str:
    """The sentence with which *settings* are refused."""
    with pytest.raises(Malformed) as refused:
        load_settings(None, settings)
    assert refused.value.code == "setting-invalid"
    return refused.value.sentence


def test_defaults_are_safe() -> None:
    """Nothing is open that nobody asked for."""
    settings = load_settings(None, {})
    assert settings.plain_tang is False
    assert settings.tang_dir is None
    assert settings.challenge_ttl == 120


def test_every_setting_is_documented() -> None:
    """The description is the flag's help and the row in docs/settings.md: a sentence."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description[0].isupper(), name
        assert field.description.endswith("."), name


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """A flag that was not given leaves the file's value; one that was given as false counts."""
    file = tmp_path / "settings.toml"
    file.write_text('port = 80\nplain_tang = true\nhost = "::1"\n')
    settings = load_settings(file, {"port": 81, "plain_tang": False, "host": None})
    assert (settings.port, settings.plain_tang, settings.host) == (81, False, "::1")


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    """Every setting has a default."""
    file = tmp_path / "settings.toml"
    file.write_text("")
    assert load_settings(file, {}) == load_settings(None, {})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"port": 65536}, "Setting port: it should be less than or equal to 65535."),
        ({"port": -1}, "Setting port: it should be greater than or equal to 0."),
        ({"port": 80.5}, "Setting port: it should be a valid integer, got a number with a fractional part."),
        ({"prot": 80}, "Setting prot: there is no such setting."),
        ({"state": ""}, "Setting state: a path must not be empty."),
        ({"tang_dir": "", "plain_tang": True}, "Setting tang_dir: a path must not be empty."),
        ({"port_file": "."}, "Setting port_file: a path must not be empty."),
        ({"host": 1}, "Setting host: it should be a valid string."),
        ({"challenge_ttl": 4}, "Setting challenge_ttl: it should be greater than or equal to 5."),
        ({"log_level": "trace"}, "Setting log_level: it should be 'debug', 'info', 'warning' or 'error'."),
        ({"tls_key": "x"}, "tls_certificate and tls_key are given together or not at all."),
        (
            {"tls_client_ca": "x"},
            "tls_client_ca needs tls_certificate: without TLS nobody can show a certificate.",
        ),
        ({"tang_dir": "/x"}, "tang_dir needs plain_tang: without it no key answers without evidence."),
        (
            {"server_tpm": "/dev/tpmrm0"},
            "Setting server_tpm: it is a TCTI: device:, swtpm:, mssim: or tabrmd: and its configuration.",
        ),
        (
            {"server_tpm": "swtpm:port=1", "workers": 2},
            "several workers share a server_tpm only through device:/dev/tpmrm0 or tabrmd:.",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], sentence: str) -> None:
    """One sentence that names the setting and says what it should be."""
    assert refusal(**settings) == sentence


@pytest.mark.parametrize("endpoint", ["", "/tang", "/a/b.c/d_e-f"])
def test_endpoints(endpoint: str) -> None:
    """A path of plain segments, or none."""
    assert load_settings(None, {"endpoint": endpoint}).endpoint == endpoint


@pytest.mark.parametrize(
    ("spelled", "endpoint"),
    [
        ("tang", "/tang"),
        ("api/x", "/api/x"),
        ("/tang/", "/tang"),
        ("//tang//", "/tang"),
        ("/", ""),
        ("//", ""),
    ],
)
def test_spellings_of_an_endpoint(spelled: str, endpoint: str) -> None:
    """Slashes around it do not count, as for tangd."""
    assert load_settings(None, {"endpoint": spelled}).endpoint == endpoint


@pytest.mark.parametrize("endpoint", ["/ta ng", "/ä", "/tang\n", "/a?b", "/%2f", "a//b"])
def test_wrong_endpoints(endpoint: str) -> None:
    """A path that could never be matched, or be matched twice, is refused."""
    assert refusal(endpoint=endpoint).startswith("Setting endpoint: it is a path such as /tang")


def test_values_are_not_repeated() -> None:
    """A wrong value may hold a password."""
    assert "hunter2" not in refusal(port="hunter2")
    assert "hunter2" not in refusal(database=["postgresql://tang:hunter2@db/tang"])


def test_not_utf8() -> None:
    """The environment is bytes; Python shows what is no UTF-8 as halves of surrogate pairs."""
    assert refusal(limit_exempt="192.0.2.\udcce") == "A setting is not UTF-8."


@pytest.mark.parametrize(("port", "workers"), [(65536, 1), (99999, 1), (65535, 2)])
def test_no_worker_has_an_impossible_port(port: int, workers: int) -> None:
    """Each further worker shows its metrics on the next port."""
    sentence = refusal(metrics_listen=f"127.0.0.1:{port}", workers=workers)
    assert sentence == "metrics_listen needs a port of at most 65535 for each worker."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port = ", "is not TOML: Invalid value (at end of document)."),
        (b"\xff", "is not TOML: "),
        (b"port = " + b"1" * 5000, "is not TOML: "),
        (b"port = " + b"[" * 5000, "is nested too deeply."),
    ],
)
def test_not_toml(tmp_path: Path, content: bytes, message: str) -> None:
    """The file is named, and the place in it."""
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    with pytest.raises(Malformed) as refused:
        load_settings(file, {})
    assert refused.value.code == "setting-invalid"
    assert f"File {file} {message}" in refused.value.sentence


def test_no_file(tmp_path: Path) -> None:
    """A file that was named has to be there."""
    with pytest.raises(NotFound) as refused:
        load_settings(tmp_path / "no.toml", {})
    assert refused.value.sentence == f"File {tmp_path}/no.toml cannot be read: No such file or directory."


@pytest.mark.parametrize("name", ["state", "a?b", "50%25", "%3F", "a#b", "a b", "ä", "a@b:c", "a'\"b", "?"])
def test_the_database_is_in_the_state(tmp_path: Path, name: str) -> None:
    """Any name of the directory: a part that a URL takes for its own would put the keys elsewhere."""
    url = parse_url(Settings(state=tmp_path / name).database_url)
    assert url.database == f"{tmp_path}/{name}/tang-attest.db"
    assert not url.query


@pytest.mark.parametrize("name", ["a?b", "50%25", "a#b", "a b", "a+b", "ä"])
def test_the_place_of_a_database_is_a_url_of_it(tmp_path: Path, name: str) -> None:
    """As a message shows it, it can be written into the settings: with each SQLAlchemy that is allowed."""
    url = Settings(state=tmp_path / name).database_url
    assert parse_url(place_of(url)).database == parse_url(url).database == f"{tmp_path}/{name}/tang-attest.db"


def test_a_relative_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is that of now, wherever the process goes."""
    monkeypatch.chdir(tmp_path)
    assert sa.make_url(Settings(state=Path("x")).database_url).database == f"{tmp_path}/x/tang-attest.db"


def test_a_database_of_ones_own() -> None:
    """It is taken as it is."""
    assert load_settings(None, {"database": "postgresql://db/tang"}).database_url == "postgresql://db/tang"


MAIL = {"kind": "mail", "server": "mail.example.org", "sender": "a@example.org", "to": ["b@example.org"]}
NTFY = {"kind": "ntfy", "url": "https://ntfy.example.org/alerts"}


def test_receivers_come_as_tables_or_as_json(tmp_path: Path) -> None:
    """A container has no file: the flag and the environment take JSON."""
    file = tmp_path / "settings.toml"
    file.write_text('[notify.ops]\nkind = "ntfy"\nurl = "https://ntfy.example.org/alerts"\n')
    read = load_settings(file, {})
    assert read.notify["ops"].kind == "ntfy"
    assert load_settings(None, {"notify": json.dumps({"ops": NTFY})}) == read
    mail = load_settings(None, {"notify": {"ops": MAIL}}).notify["ops"]
    assert isinstance(mail, MailSettings)
    assert mail.address == ("mail.example.org", 587)
    other = load_settings(None, {"notify": {"ops": MAIL | {"server": "[::1]:2525"}}}).notify["ops"]
    assert isinstance(other, MailSettings)
    assert other.address == ("::1", 2525)


def test_the_kinds_of_events_are_those_of_notices() -> None:
    """A receiver can choose each of them."""
    assert set(NtfySettings.model_validate(NTFY).events) == {kind.value for kind in NoticeKind}


@pytest.mark.parametrize(
    ("receivers", "sentence"),
    [
        ("{", "Setting notify: it is no JSON."),
        ("[]", "Setting notify: it should be a valid dictionary."),
        ({"a": {}}, "Setting notify.a: its kind is missing: webhook, mail, ntfy or apprise."),
        ({"a": {"kind": "fax"}}, "Setting notify.a: its kind is webhook, mail, ntfy or apprise."),
        ({"a": NTFY | {"token": "x"}}, "Setting notify.a.token: there is no such setting."),
        (
            {"a": NTFY | {"url": "ftp://x/y"}},
            "Setting notify.a.url: it is a URL such as https://example.org/x.",
        ),
        ({"a": NTFY | {"url": "https://[x/y"}}, "Setting notify.a.url: it is not a URL."),
        (
            {"a": NTFY | {"url": "https://u:p@x/y"}},
            "Setting notify.a.url: a URL has no user and no password; a secret is in a file.",
        ),
        (
            {"a": NTFY | {"url": "https://x/"}},
            "Setting notify.a.url: it is the URL of a topic, such as https://ntfy.example.org/alerts.",
        ),
        (
            {"a": MAIL | {"to": []}},
            "Setting notify.a.to: Tuple should have at least 1 item after validation, not 0.",
        ),
        (
            {"a": MAIL | {"to": ["b@example.org\nBcc: c@example.org"]}},
            "Setting notify.a.to.0: it is a bare mail address such as ops@example.org.",
        ),
        (
            {"a": MAIL | {"sender": "Tang <a@example.org>"}},
            "Setting notify.a.sender: it is a bare mail address such as ops@example.org.",
        ),
        (
            {"a": MAIL | {"user": "x"}},
            "Setting notify.a: user and password_file are given together or not at all.",
        ),
        (
            {"a": MAIL | {"tls": "none", "user": "x", "password_file": "p"}},
            "Setting notify.a: a password needs TLS: tls is starttls or tls.",
        ),
    ],
)
def test_wrong_receivers(receivers: object, sentence: str) -> None:
    """Each fault in one sentence with the receiver's name, and without a value."""
    assert refusal(notify=receivers) == sentence


_CONSOLE = {"console_url": "https://console.example"}


@pytest.mark.parametrize("listen", ["127.0.0.1:7580", "[::1]:7580", "localhost:7580", "127.1.2.3:0"])
def test_the_console_is_in_the_clear_on_this_host_only(listen: str) -> None:
    """A proxy there has the certificate; any other address takes one of the console's own."""
    settings = load_settings(None, {**_CONSOLE, "console_listen": listen})
    assert settings.console_address is not None
    certificate = {"console_certificate": "/c.pem", "console_key": "/k.pem"}
    for elsewhere in ("0.0.0.0:7580", "[::]:7580", "192.0.2.1:7580", "console.example:7580"):
        sentence = refusal(**_CONSOLE, console_listen=elsewhere)
        assert sentence.startswith("console_listen needs console_certificate, or an address of this host")
        load_settings(None, {**_CONSOLE, **certificate, "console_listen": elsewhere})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"console_listen": "127.0.0.1:7580"}, "console_listen needs console_url"),
        ({**_CONSOLE, "console_listen": "7580"}, "Setting console_listen: it is HOST:PORT"),
        ({**_CONSOLE, "console_listen": "127.0.0.1:7500"}, "console_listen needs a port of its own"),
        ({"console_forwarded": "yes"}, "console_forwarded needs console_listen at an address of this host"),
        (
            {
                **_CONSOLE,
                "console_listen": "0.0.0.0:7580",
                "console_certificate": "/c.pem",
                "console_key": "/k.pem",
                "console_forwarded": "yes",
            },
            "console_forwarded needs console_listen at an address of this host",
        ),
        ({"console_certificate": "/c.pem"}, "console_certificate and console_key are given together"),
        ({"console_key": ""}, "Setting console_key: a path must not be empty"),
        (
            {**_CONSOLE, "console_listen": "127.0.0.1:70000"},
            "console_listen needs a port of at most 65535",
        ),
    ],
)
def test_settings_of_the_console_belong_together(settings: dict[str, str], sentence: str) -> None:
    """Each fault is named with its setting."""
    assert refusal(**settings).startswith(sentence)
