"""Mail over SMTP, with the standard library."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime
from pathlib import Path
from typing import Final, Literal

from tang_attest.errors import Unavailable
from tang_attest.service.notifications.message import subject_line, text_of
from tang_attest.web.receivers.secrets import read_line
from tang_attest.web.receivers.threads import Aside
from tang_attest.web.trust import context_for

#: Seconds for each step of the dialog with the mail server.
_STEP_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MailTerms:
    """The mail server and the way to it; *password_file* belongs to *user*."""

    host: str
    port: int
    tls: Literal["starttls", "tls", "none"]
    sender: str
    to: tuple[str, ...]
    user: str | None
    password_file: Path | None


class MailReceiver:
    """:class:`tang_attest.service.notifications.deliver.Receiver`: one mail to all addresses."""

    def __init__(self, terms: MailTerms) -> None:
        self._terms = terms
        self._aside = Aside()

    def check(self) -> None:
        """Raise ``notify-failed`` if the password cannot be read."""
        self._password()

    def _password(self) -> str | None:
        file = self._terms.password_file
        return None if file is None else read_line(file, "mail password")

    async def send(self, message: Mapping[str, object]) -> None:
        """See :class:`~tang_attest.service.notifications.deliver.Receiver`."""
        mail, password = self._compose(message), self._password()
        await self._aside.run(lambda: self._send(mail, password))

    def _compose(self, message: Mapping[str, object]) -> EmailMessage:
        terms = self._terms
        # A header with a line break raises; subject_line has none.
        mail = EmailMessage(policy=SMTP)
        mail["From"] = terms.sender
        mail["To"] = ", ".join(terms.to)
        mail["Subject"] = subject_line(message)
        mail["Date"] = format_datetime(localtime())
        # The same for each try, so that a mail that comes twice shows as one.
        mail["Message-ID"] = f"<{message['id']}@{terms.sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text_of(message))
        return mail

    def _send(self, mail: EmailMessage, password: str | None) -> None:
        terms = self._terms
        try:
            with self._connect() as connection:
                if terms.user is not None and password is not None:
                    connection.login(terms.user, password)
                connection.send_message(mail, terms.sender, terms.to)
        except smtplib.SMTPAuthenticationError as error:
            raise _failed(f"The mail server refused the user or the password ({error.smtp_code}).") from None
        except smtplib.SMTPNotSupportedError:
            missing = "STARTTLS" if terms.tls == "starttls" else "this login"
            raise _failed(f"The mail server does not offer {missing}.") from None
        except smtplib.SMTPRecipientsRefused as error:
            codes = sorted({code for code, _ in error.recipients.values()})
            raise _failed(f"The mail server refused the address ({', '.join(map(str, codes))}).") from None
        except smtplib.SMTPResponseException as error:
            raise _failed(f"The mail server refused the mail ({error.smtp_code}).") from None
        except ssl.SSLCertVerificationError as error:
            raise _failed(f"The mail server's certificate is not trusted: {error.verify_message}.") from None
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise _failed(f"The mail server was not reached: {type(error).__name__}.") from None

    def _connect(self) -> smtplib.SMTP:
        terms = self._terms
        if terms.tls == "tls":
            tls = context_for(ssl.Purpose.SERVER_AUTH)
            return smtplib.SMTP_SSL(terms.host, terms.port, timeout=_STEP_S, context=tls)
        connection = smtplib.SMTP(terms.host, terms.port, timeout=_STEP_S)
        try:
            if terms.tls == "starttls":
                connection.starttls(context=context_for(ssl.Purpose.SERVER_AUTH))
        except BaseException:
            connection.close()
            raise
        return connection


def _failed(sentence: str) -> Unavailable:
    return Unavailable("notify-failed", sentence)
