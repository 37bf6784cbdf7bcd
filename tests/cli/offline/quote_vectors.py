"""Quotes that a TPM (swtpm) made and what ``tang-attest checkquote`` must say about them.

    python -m tests.cli.offline.quote_vectors        writes tests/vectors/quotes/*/*.json anew

The tests use these files, so they need no TPM; where there is one, they also make fresh ones and expect the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tang_attest.protocol import eventlog
from tests.swtpm import Swtpm

DIRECTORY = Path(__file__).parents[2] / "vectors" / "quotes"
EVENT_LOG = Path(__file__).parents[2] / "vectors" / "eventlogs" / "ovmf.bin"

#: Option of each file.
OPTIONS = {"public": "-u", "message": "-m", "signature": "-s", "pcrs": "-f", "eventlog": "-e"}

NONCE = "c0ffee00c0ffee00c0ffee00c0ffee00"
ASK_NONCE = ("-q", NONCE)

AK = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
UNRESTRICTED = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
RSA = "rsa2048:rsassa-sha256:null"
P256 = "ecc256:ecdsa-sha256:null"


@dataclass(frozen=True)
class Vector:
    """A call of checkquote: its files, its other options, and the codes of the reasons it must give, in order."""

    name: str
    why: str
    files: dict[str, bytes]
    options: tuple[str, ...] = ASK_NONCE
    codes: tuple[str, ...] = ()

    def dump(self) -> str:
        """As JSON, bytes as hex."""
        return json.dumps(
            {**asdict(self), "files": {name: data.hex() for name, data in self.files.items()}}, indent=2
        )

    @classmethod
    def load(cls, text: str) -> Vector:
        """From JSON; a member that is not known here raises."""
        members = json.loads(text)
        members["files"] = {name: bytes.fromhex(data) for name, data in members["files"].items()}
        members["options"], members["codes"] = tuple(members["options"]), tuple(members["codes"])
        return cls(**members)

    def changed(self, name: str, why: str, *codes: str, options: tuple[str, ...] | None = None, **files: bytes) -> Vector:  # fmt: skip
        """The same call with other *files*."""
        return replace(
            self,
            name=name,
            why=why,
            files={**self.files, **files},
            codes=codes,
            options=self.options if options is None else options,
        )

    def command(self, directory: Path) -> list[str]:
        """Write the files into *directory*; the arguments of checkquote (and of tpm2_checkquote)."""
        arguments = []
        for name, data in self.files.items():
            (directory / name).write_bytes(data)
            arguments += [OPTIONS[name], str(directory / name)]
        return [*arguments, *self.options]


def stored() -> list[Vector]:
    """The vectors in the repository."""
    return [
        Vector.load(path.read_text())
        for path in sorted(DIRECTORY.glob("*/*.json"), key=lambda path: path.name)
    ]


def make(tpm: Swtpm) -> Iterator[Vector]:
    """Every vector, made by *tpm* (banks SHA-1, SHA-256 and SHA-384, nothing extended yet)."""
    _measure(tpm)
    yield from _good(tpm)
    yield from _refused(tpm)
    yield from _forged(tpm)


def _good(tpm: Swtpm) -> Iterator[Vector]:
    rsassa = _quote(tpm, RSA, "sha256:0,2,4,7")
    yield Vector("rsassa", "RSASSA with SHA-256", rsassa, (*ASK_NONCE, "-l", "sha256:0,2,4,7"))
    yield Vector("eventlog", "the log explains the PCRs", {**rsassa, "eventlog": EVENT_LOG.read_bytes()})
    yield Vector(
        "tpmt", "the key is a TPMT_PUBLIC", {**rsassa, "public": (tpm.directory / "ak.tpmt").read_bytes()}
    )
    yield Vector("pem", "the key is PEM", {**rsassa, "public": (tpm.directory / "ak.pem").read_bytes()})
    yield Vector("no-pcrs", "only the digest is checked", {k: v for k, v in rsassa.items() if k != "pcrs"})
    yield Vector(
        "no-nonce", "neither has qualifying data", _quote(tpm, RSA, "sha256:7", nonce=""), options=()
    )
    yield Vector("rsapss", "RSAPSS", _quote(tpm, "rsa2048:rsapss-sha256:null", "sha256:0,2,4,7"))
    yield Vector("rsassa-sha384", "a bank that is not the AK's hash", _quote(tpm, RSA, "sha384:0,7"))
    yield Vector("p256", "ECDSA on P-256", _quote(tpm, P256, "sha256:0,2,4,7"))
    yield Vector(
        "p384", "P-384, SHA-384, SHA-384 bank", _quote(tpm, "ecc384:ecdsa-sha384:null", "sha384:0,2,4,7")
    )
    all_pcrs = "sha256:" + ",".join(map(str, range(24)))
    yield Vector("all-pcrs", "three lists of digests in the PCR file", _quote(tpm, P256, all_pcrs))
    plain = ("-f", "plain", "-F", "values")
    yield Vector("plain-rsa", "plain signature, bare values", _quote(tpm, RSA, "sha256:0,7", *plain))
    yield Vector("plain-ecdsa", "plain signature, bare values", _quote(tpm, P256, "sha256:0,7", *plain))


def _refused(tpm: Swtpm) -> Iterator[Vector]:
    two = _quote(tpm, P256, "sha256:0,2+sha384:0,2")
    yield Vector("two-banks", "one bank is quoted, not two", two, codes=("selection-mismatch",))
    sha1 = _quote(tpm, P256, "sha1:0,2")
    yield Vector("sha1-bank", "the SHA-1 bank proves nothing", sha1, codes=("selection-mismatch",))
    sha1 = _quote(tpm, "rsa2048:rsassa-sha1:null", "sha256:0,2")
    yield Vector("sha1-signature", "the AK signs with SHA-1", sha1, codes=("ak-unsuitable",))
    good = Vector("", "", _quote(tpm, P256, "sha256:0,2,4"))
    relabeled = bytearray(good.files["pcrs"])
    assert relabeled[4:8] == b"\x0b\x00\x03\x15"  # SHA-256, 3 bytes, PCRs 0, 2 and 4
    relabeled[7] = 0b1000_0101  # PCRs 0, 2 and 7: the same values in the same order
    why = "CVE-2024-29039: the PCR file says that PCR 4's value is PCR 7's"
    yield good.changed("relabeled", why, "selection-mismatch", pcrs=bytes(relabeled))


def _forged(tpm: Swtpm) -> Iterator[Vector]:
    """CVE-2024-29038: an unrestricted key signs whatever its owner writes, as long as it does not look TPM-made."""
    files = _quote(tpm, RSA, "sha256:0,2,4,7", attributes=UNRESTRICTED)
    honest = Vector("", "", files)
    yield honest.changed("unrestricted", "the key is not an AK", "ak-unsuitable")
    pem = (tpm.directory / "ak.pem").read_bytes()
    why = "a limit: a PEM does not show that the key is not an AK (a warning says so)"
    yield honest.changed("unrestricted-pem", why, public=pem)
    message = b"\xff\x00\xff\x00" + files["message"][4:]
    (tpm.directory / "forged").write_bytes(message)
    tpm.run("tpm2", "sign", "-c", "ak.ctx", "-g", "sha256", "-s", "rsassa", "-o", "forged.sig", "forged")
    forged = honest.changed(
        "magic",
        "CVE-2024-29038: magic is not TPM_GENERATED_VALUE",
        "ak-unsuitable",
        "quote-invalid",
        message=message,
        signature=(tpm.directory / "forged.sig").read_bytes(),
    )
    yield forged
    yield forged.changed("magic-pem", "CVE-2024-29038, with a PEM key", "quote-invalid", public=pem)
    tpm.run("tpm2", "flushcontext", "-t")


def _measure(tpm: Swtpm) -> None:
    """Extend the events of a real boot."""
    for event in eventlog.parse(EVENT_LOG.read_bytes()).events:
        if event.extends:
            digests = ",".join(f"{bank}={digest.hex()}" for bank, digest in event.digests.items())
            tpm.run("tpm2", "pcrextend", f"{event.pcr}:{digests}")


def _quote(
    tpm: Swtpm, kind: str, selection: str, *options: str, attributes: str = AK, nonce: str = NONCE
) -> dict[str, bytes]:
    """A new key of *kind*, and what ``tpm2 quote`` writes with it; leaves ``ak.ctx``, ``ak.pem`` and ``ak.tpmt``."""
    tpm.run("tpm2", "createprimary", "-C", "e", "-G", kind, "-a", attributes, "-c", "ak.ctx")
    for form in ("tss", "tpmt", "pem"):
        tpm.run("tpm2", "flushcontext", "-t")
        tpm.run("tpm2", "readpublic", "-c", "ak.ctx", "-f", form, "-o", f"ak.{form}")
    tpm.run("tpm2", "flushcontext", "-t")
    nonce_option = ("-q", nonce) if nonce else ()
    scheme, hash_name = kind.split(":")[1].split("-")
    tpm.run(
        *("tpm2", "quote", "-c", "ak.ctx", "-l", selection, *nonce_option, "-g", hash_name),
        *("--scheme", scheme, *options, "-m", "message", "-s", "signature", "-o", "pcrs"),
    )
    tpm.run("tpm2", "flushcontext", "-t")
    names = {"public": "ak.tss", "message": "message", "signature": "signature", "pcrs": "pcrs"}
    return {name: (tpm.directory / file).read_bytes() for name, file in names.items()}


def main() -> None:
    """Write every vector anew."""
    with tempfile.TemporaryDirectory() as directory, Swtpm(Path(directory) / "tpm") as tpm:
        vectors = list(make(tpm))
    for path in DIRECTORY.glob("*/*.json"):
        path.unlink()
    for vector in vectors:
        (DIRECTORY / ("refused" if vector.codes else "verified") / f"{vector.name}.json").write_text(
            vector.dump() + "\n"
        )


if __name__ == "__main__":
    main()
