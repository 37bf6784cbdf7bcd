"""Receivers, against real ones: a mail server, web servers, and Apprise."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tang_attest.config import load_settings
from tang_attest.errors import Unavailable
from tang_attest.ports.notices import NoticeGroup, NoticeKind
from tang_attest.server.notify.receivers import check_receivers, receivers
from tang_attest.service.notifications import deliver
from tang_attest.service.notifications.deliver import attempt
from tang_attest.service.notifications.message import compose, subject_line, text_of
from tests.client_pki import ClientCa, write_key
from tests.service.notifications.receiving import MailInbox, RunningMail, web_inbox

NOW = datetime(2026, 11, 27, 16, 0, tzinfo=UTC)
PASSWORD = "a password of the mail server"
TOKEN = "tk_a_token_of_ntfy"


def group(
    *names: str, sentence: str = "The boot was refused.", action: str = "Approve DEVICE."
) -> NoticeGroup:
    """A group of *names*."""
    return NoticeGroup(
        "key",
        NoticeKind.BOOT,
        sentence,
        action,
        NOW,
        known_until=NOW,
        due_at=None,
        members={name: (name, NOW.isoformat()) for name in names},
    )


MESSAGE = compose(group("pi-b"), "tang-1", "https://console.example/")


async def deliver_to(tmp_path: Path, message: Mapping[str, object] = MESSAGE, **receiver: Any) -> str | None:
    """Deliver to a receiver of the settings; return the problem."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "secret").write_text("sixteen bytes or more\n")
    settings = load_settings(
        None, {"webhook_secret": tmp_path / "secret", "notify": json.dumps({"it": receiver}, default=str)}
    )
    problem = await attempt(receivers(settings)["it"], message)
    return None if problem is None else problem.sentence


@contextmanager
def mail_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Iterator[tuple[MailInbox, int]]:
    """A mail server with a certificate of a CA that this process trusts; it wants TLS and a password."""
    inbox = MailInbox(PASSWORD, options.pop("refusal", None))
    ca = ClientCa(tmp_path / "pki")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = tmp_path / "pki" / "mail.pem"
    certificate.write_bytes(ca.issue_server("localhost", key.public_key()).public_bytes(Encoding.PEM))
    if options.pop("trusted", True):
        monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, write_key(tmp_path / "pki" / "mail.key", key))
    if options.pop("implicit", False):
        options["ssl_context"] = context
    else:
        options |= {"tls_context": context, "require_starttls": True, "authenticator": inbox.authenticate}
        options["auth_required"] = True
    server = RunningMail(inbox, **options)
    server.start()
    try:
        yield inbox, server.port
    finally:
        server.stop()


def mail(tmp_path: Path, port: int, **others: Any) -> dict[str, Any]:
    """The settings of a mail receiver with a password."""
    terms = {"user": "tang", "password_file": tmp_path / "password"} | others
    return {
        "kind": "mail",
        "server": f"localhost:{port}",
        "sender": "tang@example.org",
        "to": ["ops@example.org", "night@example.org"],
    } | {name: value for name, value in terms.items() if value is not None}


async def test_mail_with_starttls_and_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mail to all addresses, marked as automatic."""
    with mail_server(tmp_path, monkeypatch) as (inbox, port):
        assert await deliver_to(tmp_path, **mail(tmp_path, port)) is None
    (got,), (envelope,) = inbox.mails, inbox.envelopes
    assert got["Subject"] == "tang-attest: pi-b: a refused boot waits"
    assert (got["From"], got["Auto-Submitted"]) == ("tang@example.org", "auto-generated")
    assert envelope.rcpt_tos == ["ops@example.org", "night@example.org"]
    text = got.get_content()
    assert "Approve pi-b." in text
    assert "https://console.example/" in text


async def test_mail_with_implicit_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a user, as a relay of one's own takes it."""
    with mail_server(tmp_path, monkeypatch, implicit=True) as (inbox, port):
        settings = mail(tmp_path, port, tls="tls", user=None, password_file=None)
        assert await deliver_to(tmp_path, **settings) is None
    assert len(inbox.mails) == 1


async def test_mail_that_is_not_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cause in one sentence, which tells no password."""
    with mail_server(tmp_path, monkeypatch, refusal="552 too large") as (_, port):
        assert "refused the mail (552)" in str(await deliver_to(tmp_path, **mail(tmp_path, port)))
        wrong = tmp_path / "wrong"
        wrong.write_text("wrong")
        problem = await deliver_to(tmp_path, **mail(tmp_path, port, password_file=wrong))
        assert problem == "The mail server refused the user or the password (535)."
        monkeypatch.delenv("SSL_CERT_FILE")
        problem = await deliver_to(tmp_path, **mail(tmp_path, port))
        assert str(problem).startswith("The mail server's certificate is not trusted:")
    problem = await deliver_to(tmp_path, **mail(tmp_path, port))
    assert str(problem).startswith("The mail server was not reached:")
    missing = tmp_path / "missing"
    problem = await deliver_to(tmp_path, **mail(tmp_path, port, password_file=missing))
    assert problem == f"The mail password cannot be read: {missing}: No such file or directory."


async def test_a_mail_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a bounded time; while its connection lasts, no second one is opened."""
    monkeypatch.setattr(deliver, "LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = load_settings(
            None, {"notify": {"it": mail(tmp_path, silent.getsockname()[1], user=None, password_file=None)}}
        )
        receiver = receivers(settings)["it"]
        first, second = await attempt(receiver, MESSAGE), await attempt(receiver, MESSAGE)
        assert first is not None
        assert first.sentence == "It did not take the message within 0 seconds."
        assert second is not None
        assert second.sentence == "It still holds the connection of an earlier message."


async def test_a_hostile_string_adds_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line breaks, control characters and length: one subject of one line, whatever a machine calls itself."""
    evil = "pi\r\nBcc: thief@example.org\r\n\r\n\x1b[2J\u202e" + "x" * 5000
    message = compose(group(evil, sentence=evil, action=evil), evil, None)
    assert "\n" not in subject_line(message)
    assert "\x1b" not in text_of(message)
    assert "\u202e" not in text_of(message)
    assert len(text_of(message)) < 3000
    with mail_server(tmp_path, monkeypatch, implicit=True) as (inbox, port):
        settings = mail(tmp_path, port, tls="tls", user=None, password_file=None)
        assert await deliver_to(tmp_path, message, **settings) is None
    (got,), (envelope,) = inbox.mails, inbox.envelopes
    assert got["Bcc"] is None
    assert envelope.rcpt_tos == ["ops@example.org", "night@example.org"]


async def test_ntfy(tmp_path: Path) -> None:
    """As JSON to the server's root, with the token and the page."""
    async with web_inbox() as inbox:
        url = inbox.url.replace("/inbox", "/sub/alerts")
        assert await deliver_to(tmp_path, kind="ntfy", url=url, token_file=tmp_path / "token") is None
    ((path, headers, body),) = inbox.requests
    assert path == "/sub/"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert (body["topic"], body["click"]) == ("alerts", "https://console.example/machines/pi-b/refusal")
    assert body["title"] == "tang-attest: pi-b: a refused boot waits"
    assert "Approve pi-b." in body["message"]


async def test_ntfy_that_refuses(tmp_path: Path) -> None:
    """The status, and a hint at the token; a redirection is no success."""
    async with web_inbox(403, 302, 500) as inbox:
        url = inbox.url.replace("/inbox", "/alerts")
        problems = [await deliver_to(tmp_path, kind="ntfy", url=url) for _ in range(3)]
    assert problems == [
        "ntfy answered 403; see the access token.",
        "ntfy answered 302.",
        "ntfy answered 500.",
    ]
    assert str(await deliver_to(tmp_path, kind="ntfy", url=url)).startswith("ntfy was not reached:")


async def test_a_webhook_is_signed(tmp_path: Path) -> None:
    """As those of policies; the message is JSON."""
    async with web_inbox(200, 500) as inbox:
        assert await deliver_to(tmp_path, kind="webhook", url=inbox.url) is None
        assert await deliver_to(tmp_path, kind="webhook", url=inbox.url) == "The webhook answered 500."
    _, headers, body = inbox.requests[0]
    assert body == MESSAGE
    signed = (
        f"{headers['Tang-Attest-Timestamp']}\n".encode()
        + json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    )
    mac = hmac.new(b"sixteen bytes or more", signed, hashlib.sha256).hexdigest()
    assert headers["Tang-Attest-Signature"] == f"sha256={mac}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules that Apprise imports
async def test_apprise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The real one, to each URL of the file; its log tells no URL."""
    urls = tmp_path / "urls"
    async with web_inbox() as inbox:
        address = inbox.url.removeprefix("http://")
        urls.write_text(f"# two services\njson://user:hunter2@{address}/a\n\njson://{address}/b\n")
        assert await deliver_to(tmp_path, kind="apprise", url_file=urls) is None
        assert sorted(path for path, _, _ in inbox.requests) == ["/inbox/a", "/inbox/b"]
        assert inbox.bodies[0]["title"] == "tang-attest: pi-b: a refused boot waits"
        assert "Approve pi-b." in inbox.bodies[0]["message"]
        inbox.statuses = [500]
        problem = await deliver_to(tmp_path, kind="apprise", url_file=urls)
        assert problem == "Apprise could not deliver to every service."
    urls.write_text("nothing://x\n")
    problem = await deliver_to(tmp_path, kind="apprise", url_file=urls)
    assert problem == "Apprise does not know the service of URL 1 in the file."
    urls.write_text("# none\n")
    assert await deliver_to(tmp_path, kind="apprise", url_file=urls) == f"There is no URL in {urls}."
    assert "hunter2" not in caplog.text


async def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names what to install; `serve --check` says it, too."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    urls = tmp_path / "urls"
    urls.write_text("json://localhost")
    sentence = "Apprise is not installed; it is the extra tang-attest[notify]."
    assert await deliver_to(tmp_path, kind="apprise", url_file=urls) == sentence
    settings = load_settings(None, {"notify": {"chat": {"kind": "apprise", "url_file": str(urls)}}})
    (problem,) = check_receivers(settings)
    assert (problem.code, problem.sentence) == ("notify-failed", f"Receiver 'chat': {sentence}")


async def test_a_receiver_that_learns_no_names(tmp_path: Path) -> None:
    """The kind and the number, and nothing of which machine it is."""
    async with web_inbox() as inbox:
        await deliver_to(tmp_path, kind="webhook", url=inbox.url, names=False)
    (body,) = inbox.bodies
    assert (body["title"], body["count"]) == ("1 machine: a refused boot waits", 1)
    assert "pi-b" not in str(body)
    assert "tang-1" not in str(body)


async def test_attempts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that never returns has failed after a while."""

    class Endless:
        async def send(self, message: Mapping[str, object]) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(deliver, "LIMIT_S", 0.01)
    problem = await attempt(Endless(), MESSAGE)
    assert isinstance(problem, Unavailable)
