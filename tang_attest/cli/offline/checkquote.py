"""``tang-attest checkquote``: like tpm2_checkquote, without its holes."""

from __future__ import annotations

from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.types import SelectionType
from tang_attest.errors import Malformed, Refused, TangAttestError
from tang_attest.files import read_file
from tang_attest.protocol import eventlog, tpm
from tang_attest.protocol.checkquote import tools_files
from tang_attest.protocol.checkquote.check import Question, QuoteCheckResult, check_quote
from tang_attest.protocol.checkquote.tools_files import PcrFormat
from tang_attest.protocol.values.pcr import Selection

#: A TPM2B_DATA holds at most a hash and its algorithm: 2 + 64 bytes (TPM 2.0 part 2, section 10.4.3).
_MAX_QUALIFICATION = 66
#: PEM is the longest kind of key file, about 800 bytes for RSA 4096.
_MAX_KEY = 8192

_FILE = click.Path(path_type=Path)


class Unreadable(click.ClickException):
    """Nothing was checked: a file or an option is at fault, so the exit code is not that of a refusal."""

    exit_code = 2

    def __init__(self, problem: TangAttestError) -> None:
        super().__init__(problem.sentence)
        self._problem = problem

    def show(self, file: object = None) -> None:
        """The two lines of every error."""
        output.error(self._problem)


def qualification_bytes(ctx: click.Context, param: click.Parameter, text: str) -> bytes:
    """Qualifying data as tpm2-tools take it: hex digits, or the path of a file that holds the bytes.

    Fails where *text* could be both, because a planted file must not replace a nonce.
    """
    data = _from_hex(text)
    if text and _is_file(text):
        if data is not None:
            raise click.BadParameter(
                f"{text!r} is hex and also a file; write ./{text} for the file", ctx, param
            )
        data = _read(Path(text), _MAX_QUALIFICATION)
    if data is None or len(data) > _MAX_QUALIFICATION:
        what = f"{text!r} is neither a file nor at most {_MAX_QUALIFICATION} bytes of hex"
        raise click.BadParameter(what, ctx, param)
    return data


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a path can be
        return False


@click.command()
@click.option(
    "-u", "--public", type=_FILE, required=True, help="The AK's public key: TPM2B_PUBLIC, TPMT_PUBLIC or PEM."
)
@click.option("-m", "--message", type=_FILE, required=True, help="The quote: what 'tpm2 quote -m' wrote.")
@click.option(
    "-s", "--signature", type=_FILE, required=True, help="Its signature: what 'tpm2 quote -s' wrote."
)
@click.option(
    "-q",
    "--qualification",
    callback=qualification_bytes,
    default="",
    metavar="HEX|FILE",
    help="The qualifying data (nonce) the quote must have; without it, it must have none.",
)
@click.option(
    "-f",
    "--pcr",
    type=_FILE,
    help="The PCR values: what 'tpm2 quote -o' wrote, or bare values one after the other.",
)
@click.option(
    "-F",
    "--format",
    "pcr_format",
    type=click.Choice(["serialized", "values"]),
    help="Format of the PCR file; recognized by default.",
)
@click.option(
    "-l",
    "--pcr-list",
    type=SelectionType(),
    metavar="SELECTION",
    help="The bank and PCRs that must have been quoted, exactly; such as sha256:0,2,4,7.",
)
@click.option(
    "-e",
    "--eventlog",
    "event_log",
    type=_FILE,
    help="A TCG event log that must explain every quoted PCR; needs -f.",
)
@click.option(
    "-g",
    "--hash-algorithm",
    type=click.Choice(["sha256", "sha384", "sha512"]),
    help="The hash the AK signs with; sha256 by default if the key is PEM, which does not say.",
)
@click.option(
    "--scheme",
    type=click.Choice(["rsassa", "rsapss", "ecdsa"]),
    help="The AK's scheme; rsassa or ecdsa by default if the key is PEM, which does not say.",
)
@output.json_option
def checkquote(
    public: Path,
    message: Path,
    signature: Path,
    qualification: bytes,
    pcr: Path | None,
    pcr_format: PcrFormat | None,
    pcr_list: Selection | None,
    event_log: Path | None,
    hash_algorithm: str | None,
    scheme: str | None,
    as_json: bool,
) -> None:
    """Check a TPM quote, as tpm2_checkquote does and better.

    The options are those of tpm2_checkquote, which left much unchecked before version 5.7.

    \b
    On the machine:   tpm2 quote -c ak.ctx -l sha256:0,2,4,7 -q 0badc0de -m q.msg -s q.sig -o q.pcrs
                      tpm2 readpublic -c ak.ctx -o ak.pub
    Here:             tang-attest checkquote -u ak.pub -m q.msg -s q.sig -f q.pcrs -q 0badc0de -l sha256:0,2,4,7

    The key has to be an attestation key (a PEM cannot show that it is), the signature is checked under the
    key's own scheme and hash, the PCR numbers are those that were signed, and there is one bank, not SHA-1.
    Without -l any selection will do, and without -f no PCR values are checked.

    Exit code: 0 everything holds, 1 refused, 2 nothing was checked (an option, an unreadable file or key).
    """
    if event_log is not None and pcr is None:
        raise click.UsageError("--eventlog is compared with PCR values: give them with --pcr")
    question = Question(
        public=_read(public, _MAX_KEY),
        message=_read(message, tpm.MAX_STRUCTURE),
        signature=_read(signature, tpm.MAX_STRUCTURE),
        qualification=qualification,
        selection=pcr_list,
        pcr_file=None if pcr is None else _read(pcr, tools_files.MAX_PCR_FILE),
        pcr_format=pcr_format,
        event_log=None if event_log is None else _read(event_log, eventlog.MAX_LOG_SIZE),
        scheme=scheme,
        hash_name=hash_algorithm,
    )
    try:
        verdict = check_quote(question)
    except Malformed as error:
        raise Unreadable(error) from error
    _show(question, verdict, as_json=as_json)
    if not verdict.verified:
        raise Refused.because(*verdict.reasons)


def _show(question: Question, verdict: QuoteCheckResult, *, as_json: bool) -> None:
    """Data on stdout; on stderr what was not checked, and the last line.  A refusal is shown by the frame."""
    if as_json:
        output.print_json(verdict.as_json())
    if not verdict.verified or verdict.key is None or verdict.selection is None:
        return
    if not as_json and verdict.values is not None:
        rows = [(verdict.selection.bank, number, value.hex()) for number, value in verdict.values.items()]
        output.table(("bank", "pcr", "value"), rows, empty="")
    signed = f"{verdict.key.scheme} with {verdict.key.hash_name}"
    if 1 not in question.asked:
        output.say(
            "warning: a PEM key does not show that it is an attestation key; its owner may sign anything with it"
        )
    if question.pcr_file is None:
        output.say("warning: no PCR values were given, so only the signed digest over them is verified")
    output.say(f"quote verified: {verdict.selection}, signed {signed}")


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_file(path, limit)
    except TangAttestError as error:
        raise Unreadable(error) from error


def _from_hex(text: str) -> bytes | None:
    # Not bytes.fromhex alone: it skips spaces, and tpm2-tools do not.
    if not all(digit in "0123456789abcdefABCDEF" for digit in text.removeprefix("0x")):
        return None
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:  # an odd number of digits
        return None
