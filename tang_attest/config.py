"""The settings of the service and of every command: a TOML file, then the environment and flags, which win.

Every setting is documented here once; the man page, ``serve --help`` and docs/settings.md are compared with it
by a test.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tang_attest.errors import Malformed, Reason
from tang_attest.files import read_path

#: Read by the service and by every command, unless another file is named.
DEFAULT_FILE: Final = Path("/etc/tang-attest.toml")
#: The environment names the settings, and the file as ``TANG_ATTEST_CONFIG``.
VARIABLES: Final = "TANG_ATTEST_"

#: In the state directory, when no other database is named.
DATABASE_NAME: Final = "tang-attest.db"

#: Bytes of a file of settings; more is another file.
_MAX_FILE: Final = 1 << 20

#: An origin whose host is a DNS name.
_ORIGIN: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)(:(?P<port>[0-9]{1,5}))?/?"
)
_DEFAULT_PORTS: Final = {"https": "443", "http": "80"}

#: TPMs that several processes can use at the same time; any other has one at a time.
_SHARED_TPMS: Final = ("device:/dev/tpmrm", "tabrmd:")


#: A day's events in their kinds; those of tang_attest/ports/notices.py.
_Kind = Literal[
    "boot", "announcement", "unlock", "approval", "suspension", "silence", "rollout", "record", "certificate"
]
_KINDS: Final[tuple[_Kind, ...]] = get_args(_Kind)


class _Receiver(BaseModel):
    """One receiver of notifications."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: tuple[_Kind, ...] = Field(_KINDS, min_length=1, description="Kinds of events that it gets.")
    names: bool = Field(
        True, description="False leaves names of machines and what differs out of its messages."
    )


def _web_address(value: str) -> str:
    """Return *value*, when it is an address of the web without secrets in it."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("it is not a URL") from None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or port == 0
        or not value.isprintable()
        or " " in value
    ):
        raise ValueError("it is a URL such as https://example.org/x")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL has no user and no password; a secret is in a file")
    return value


def _topic(value: str) -> str:
    parts = urlsplit(_web_address(value))
    if (
        not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/[A-Za-z0-9_-]{1,64}", parts.path)
        or parts.query
        or parts.fragment
    ):
        raise ValueError("it is the URL of a topic, such as https://ntfy.example.org/alerts")
    return value


def _mail_address(value: str) -> str:
    """Return *value*, when it is a bare address: nothing that could add a header or a recipient."""
    if len(value) > 254 or not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]+", value):
        raise ValueError("it is a bare mail address such as ops@example.org")
    return value


WebAddress = Annotated[str, AfterValidator(_web_address)]
MailAddress = Annotated[str, AfterValidator(_mail_address)]


class WebhookSettings(_Receiver):
    """Signed JSON to a web server."""

    kind: Literal["webhook"]
    url: WebAddress
    secret_file: Path | None = Field(None, description="The secret that signs; webhook_secret by default.")


class NtfySettings(_Receiver):
    """Push messages by ntfy."""

    kind: Literal["ntfy"]
    url: Annotated[str, AfterValidator(_topic)]
    token_file: Path | None = None


class AppriseSettings(_Receiver):
    """Services that Apprise speaks to."""

    kind: Literal["apprise"]
    url_file: Path = Field(description="Apprise's URLs, one a line: they hold secrets.")


class MailSettings(_Receiver):
    """Mail over SMTP."""

    kind: Literal["mail"]
    server: str = Field(pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$")
    tls: Literal["starttls", "tls", "none"] = "starttls"
    sender: MailAddress
    to: tuple[MailAddress, ...] = Field(min_length=1, max_length=20)
    user: str | None = Field(None, min_length=1, max_length=256)
    password_file: Path | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file are given together or not at all")
        if self.password_file is not None and self.tls == "none":
            raise ValueError("a password needs TLS: tls is starttls or tls")
        if self.address[1] > 65535:
            raise ValueError("the server's port is at most 65535")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port; the port is that of the kind of TLS by default."""
        found = re.fullmatch(r"(\[.+\]|[^:]+)(?::([0-9]+))?", self.server)
        assert found is not None  # noqa: S101 - the pattern of the field says so
        default = {"starttls": 587, "tls": 465, "none": 25}[self.tls]
        return found[1].strip("[]"), int(found[2] or default)


ReceiverSettings = WebhookSettings | NtfySettings | AppriseSettings | MailSettings
ReceiverName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Settings(BaseModel):
    """The settings of ``tang-attest serve``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path = Field(
        Path("/var/lib/tang-attest"), description="Directory of the database and the key-encryption key."
    )
    database: str | None = Field(
        None, description="SQLAlchemy URL of the database; SQLite in the state directory by default."
    )
    host: str = Field("0.0.0.0", description="Address to listen on; :: for IPv6.")  # noqa: S104 - a server listens
    port: int = Field(7500, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Worker processes, which share the port; by default one for each processor that has 400 MB of memory.",
    )
    port_file: Path | None = Field(None, description="Write the port here once the server answers.")
    server_tpm: str | None = Field(
        None,
        description="TCTI of this machine's TPM, such as device:/dev/tpmrm0: new exchange keys are made in it and never leave it.",
        pattern=r"^(device|swtpm|mssim|tabrmd):.+$",
    )
    owner_auth_file: Path | None = Field(
        None,
        description="File whose first line is the password of the server_tpm's owner hierarchy, if it has one.",
    )
    endpoint: str = Field(
        "",
        description="Path before every route, such as /tang; slashes around it do not count.",
        pattern=r"^/*([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?/*$",
    )
    tls_certificate: Path | None = Field(None, description="PEM certificate chain; turns HTTPS on.")
    tls_key: Path | None = Field(None, description="PEM private key of the certificate.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of the CAs from one of which every client has to show a certificate; CRLs in it count.",
    )
    plain_tang: bool = Field(False, description="Answer open keys without evidence, as tangd does.")
    tang_dir: Path | None = Field(None, description="Tang key directory that plain Tang serves.")
    admin_api: bool = Field(
        False, description="Answer the admin API below /admin/v1; over TLS, or to this host itself."
    )
    console_url: str | None = Field(
        None,
        description="Address of the console in browsers, such as https://console.example; passkeys belong to its host name.",
    )
    hook_dir: Path | None = Field(
        None, description="Directory of the programs that policies may name as hook:NAME."
    )
    webhook_secret: Path | None = Field(
        None, description="File with the secret that signs webhooks; 16 bytes or more."
    )
    console_listen: str | None = Field(
        None,
        description="HOST:PORT of the console for operators, such as 127.0.0.1:7580; off by default, and never the port of machines.",
    )
    console_certificate: Path | None = Field(
        None,
        description="PEM certificate chain of the console; without it only a proxy on this host reaches it.",
    )
    console_key: Path | None = Field(None, description="PEM private key of the console's certificate.")
    console_forwarded: bool = Field(
        False,
        description="The proxy on this host sets X-Forwarded-For: its last address is the browser's, in the log and the audit record.",
    )
    notify: dict[ReceiverName, Annotated[ReceiverSettings, Field(discriminator="kind")]] = Field(
        {},
        max_length=32,
        description="Receivers of notifications: a table [notify.NAME] each, or JSON (docs/how-to/notifications.md).",
    )
    challenge_ttl: int = Field(
        120, ge=5, le=3600, description="Seconds in which a challenge has to be answered."
    )
    enroll_ttl: int = Field(
        300, ge=5, le=3600, description="Seconds in which an enrollment has to be finished."
    )
    metrics_listen: str | None = Field(
        None,
        description="HOST:PORT where /metrics is read, such as 127.0.0.1:9750; each further worker has the next port.",
    )
    address_rate: int = Field(
        400,
        ge=0,
        description="Requests per second that one address (of IPv6: one /64) may make for long, ten times as many at once; 0 is no limit.",
    )
    device_rate: int = Field(
        2,
        ge=0,
        description="Requests per second that one address may make about one device for long, 30 times as many at once; 0 is no limit.",
    )
    address_connections: int = Field(2048, ge=1, description="Open connections of one address.")
    max_connections: int = Field(4096, ge=1, description="Open connections in all.")
    max_requests: int = Field(1024, ge=1, description="Requests in progress at a time.")
    limit_exempt: str = Field(
        "127.0.0.0/8,::1/128",
        description="Networks that are never limited as an address, such as a proxy's; separated by commas.",
    )
    log_format: Literal["console", "json"] = Field("console", description="Format of log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )

    @field_validator(
        "state",
        "port_file",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "console_certificate",
        "console_key",
        "tang_dir",
        "hook_dir",
        "webhook_secret",
    )
    @classmethod
    def _no_empty_path(cls, value: Path | None) -> Path | None:
        if value is not None and str(value) in ("", "."):
            raise ValueError("a path must not be empty")
        return value

    @field_validator("notify", mode="before")
    @classmethod
    def _json_of_a_flag(cls, value: object) -> object:
        """Return the value of JSON, as a flag and the environment give it."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None

    @field_validator("endpoint")
    @classmethod
    def _one_spelling(cls, value: str) -> str:
        """Return the path with one slash before it and none behind; tangd too takes ``api/x``."""
        inner = value.strip("/")
        return f"/{inner}" if inner else ""

    @field_validator("console_url")
    @classmethod
    def _is_origin(cls, value: str | None) -> str | None:
        """Return the origin as browsers spell it."""
        if value is None:
            return None
        found = _ORIGIN.fullmatch(value.lower())
        if found is None or int(found["port"] or 0) > 65535 or _is_ip(found["host"]):
            raise ValueError(
                "it is https://NAME or https://NAME:PORT, without a path, and NAME is no IP address"
            )
        if found["scheme"] == "http" and found["host"] != "localhost":
            raise ValueError("passkeys need https, but for http://localhost")
        port = found["port"] if found["port"] != _DEFAULT_PORTS[found["scheme"]] else None
        return f"{found['scheme']}://{found['host']}" + (f":{int(port)}" if port else "")

    @field_validator("console_listen", "metrics_listen")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r".+:[0-9]{1,5}", value):
            raise ValueError("it is HOST:PORT, such as 127.0.0.1:9750")
        return value

    @field_validator("limit_exempt")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for part in filter(None, value.split(",")):
            try:
                ip_network(part.strip())
            except ValueError:
                raise ValueError(f"'{part.strip()}' is not a network such as 192.0.2.0/24") from None
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are given together or not at all")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate: without TLS nobody can show a certificate")
        self._check_console()
        last = self.metrics_address((self.workers or 1) - 1)
        if last is not None and last[1] > 65535:
            raise ValueError("metrics_listen needs a port of at most 65535 for each worker")
        if self.tang_dir is not None and not self.plain_tang:
            raise ValueError("tang_dir needs plain_tang: without it no key answers without evidence")
        if (self.workers or 1) > 1 and self.tpm_is_exclusive:
            raise ValueError("several workers share a server_tpm only through device:/dev/tpmrm0 or tabrmd:")
        return self

    @property
    def tpm_is_exclusive(self) -> bool:
        """Return True for a ``server_tpm`` that one process alone can use."""
        return self.server_tpm is not None and not self.server_tpm.startswith(_SHARED_TPMS)

    def _check_console(self) -> None:
        if (self.console_certificate is None) != (self.console_key is None):
            raise ValueError("console_certificate and console_key are given together or not at all")
        address = self.console_address
        if self.console_forwarded and (address is None or not _is_loopback(address[0])):
            raise ValueError(
                "console_forwarded needs console_listen at an address of this host, behind a proxy"
            )
        if address is None:
            return
        if address[1] > 65535:
            raise ValueError("console_listen needs a port of at most 65535")
        if self.console_url is None:
            raise ValueError("console_listen needs console_url: the address of the console in browsers")
        if self.console_certificate is None and not _is_loopback(address[0]):
            raise ValueError(
                "console_listen needs console_certificate, or an address of this host such as 127.0.0.1 behind a proxy"
            )
        if address[1] and address[1] == self.port:
            raise ValueError("console_listen needs a port of its own, which is not that of machines")

    @property
    def console_address(self) -> tuple[str, int] | None:
        """Return host and port of the console; ``None`` when it is off."""
        return None if self.console_listen is None else _host_and_port(self.console_listen)

    @property
    def exempt_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Return the networks of ``limit_exempt``."""
        return tuple(ip_network(part.strip()) for part in filter(None, self.limit_exempt.split(",")))

    def metrics_address(self, worker: int) -> tuple[str, int] | None:
        """Return host and port of the metrics of *worker* (from 0); port 0 takes a free one for each."""
        if self.metrics_listen is None:
            return None
        host, port = _host_and_port(self.metrics_listen)
        return host, port + worker if port else 0

    @property
    def database_url(self) -> str:
        """Return the database's URL for SQLAlchemy."""
        if self.database is not None:
            return self.database
        # In a URL a question mark would end the path, and a percent sign begin an escape.
        path = str(self.state.absolute() / DATABASE_NAME)
        return f"sqlite:///{path.replace('%', '%25').replace('?', '%3F')}"


def _is_ip(host: str) -> bool:
    return re.fullmatch(r"[0-9.]+", host) is not None


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from *file* (TOML, optional), overridden by every flag that is not ``None``.

    Raises :class:`Malformed` ``setting-invalid`` naming the setting, :class:`NotFound` ``file-unreadable``.
    """
    given = _read(file) if file is not None else {}
    merged = {**given, **{name: value for name, value in flags.items() if value is not None}}
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _invalid(error) from None
    except UnicodeEncodeError:  # pydantic raises it instead
        raise Malformed("setting-invalid", "A setting is not UTF-8.") from None


def settings_file(named: Path | None) -> Path | None:
    """Return the file of the settings: *named*, or else :data:`DEFAULT_FILE` if there is one."""
    if named is not None:
        return named
    return DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) else None


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that *environment* gives as ``TANG_ATTEST_NAME``; an empty one is not given."""
    given = {name: environment.get(f"{VARIABLES}{name.upper()}", "") for name in Settings.model_fields}
    return {name: value for name, value in given.items() if value}


def _invalid(error: ValidationError) -> Malformed:
    """Return every error at once, each with the setting's name."""
    sentences = [_sentence(each) for each in error.errors(include_input=False)]
    invalid = Malformed("setting-invalid", sentences[0])
    invalid.reasons = tuple(Reason("setting-invalid", sentence) for sentence in sentences)
    return invalid


def _sentence(first: Mapping[str, Any]) -> str:
    """Return an error with the setting's name; never its value, which may hold a password."""
    # Without the kind of a receiver, which pydantic adds: notify.NAME.KIND.MEMBER.
    loc = first["loc"] if first["loc"][:1] != ("notify",) else (*first["loc"][:2], *first["loc"][3:])
    name = ".".join(str(part) for part in loc)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such setting"
    elif name == "endpoint":
        message = "it is a path such as /tang, of letters, digits, dots, underscores and hyphens"
    elif name == "server_tpm":
        message = "it is a TCTI: device:, swtpm:, mssim: or tabrmd: and its configuration"
    elif first["type"] == "union_tag_not_found":
        message = "its kind is missing: webhook, mail, ntfy or apprise"
    elif first["type"] == "union_tag_invalid":
        message = "its kind is webhook, mail, ntfy or apprise"
    elif message.startswith("Input should"):
        message = "it should" + message.removeprefix("Input should")
    return f"Setting {name}: {message}." if name else f"{message}."


def _read(file: Path) -> dict[str, Any]:
    try:
        data = read_path(file, _MAX_FILE)
    except Malformed as error:
        raise Malformed("setting-invalid", error.sentence) from None
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise Malformed("setting-invalid", f"File {file} is nested too deeply.") from None
    except ValueError as error:  # tomllib's own, no UTF-8, and a number of thousands of digits
        raise Malformed("setting-invalid", f"File {file} is not TOML: {error}.") from None
