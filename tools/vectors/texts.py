"""Vectors of qualifying data and of the cap."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from tools.conformance.primitives import texts
from tools.conformance.primitives.encoding import b64u
from tools.vectors.keys import octets

_BANKS: Final = ("sha1", "sha256", "sha384", "sha512")
_ROOT: Final = "0f6e5a3c-0000-4000-8000-000000000001"
_HOME: Final = "0f6e5a3c-0000-4000-8000-000000000002"


def qualifying_data() -> Iterator[dict[str, Any]]:
    """Yield the hashed text and its digest for each purpose."""
    nonce, kid = b64u(octets("nonce", 32)), b64u(octets("kid", 32))
    thumbprint, values = b64u(octets("thumbprint", 32)), octets("values", 160)
    secret = octets("secret", 32)
    proof = texts.activation_proof(nonce, secret)
    announced = hashlib.sha256(values).hexdigest()
    made: list[tuple[str, tuple[str, ...], bytes, dict[str, str]]] = [
        ("unlock", (nonce, kid, thumbprint), texts.unlock_data(nonce, kid, thumbprint), {"kid": kid, "thumbprint_X": thumbprint}),
        ("activate", (nonce, b64u(secret)), bytes.fromhex(proof), {"secret": b64u(secret)}),
        ("enroll", (nonce, "pi-b", proof), texts.enroll_data(nonce, "pi-b", proof), {"device": "pi-b", "proof": proof}),
        ("verify", (nonce, kid), texts.verify_data(nonce, kid), {"kid": kid}),
    ]  # fmt: skip
    for label in ("kernel 6.1.0-29", "Kernel älter"):
        digest = texts.announce_data(nonce, kid, values, label)
        parts = {"kid": kid, "values": b64u(values), "label": label}
        made.append(("announce", (nonce, kid, announced, label), digest, parts))
    for purpose, lines, digest, parts in made:
        text = "".join(f"{line}\n" for line in (f"tang-attest/v1 {purpose}", *lines))
        assert hashlib.sha256(text.encode()).digest() == digest  # noqa: S101 - the text is what was hashed
        yield {
            "name": f"{purpose} {parts.get('label', '')}".strip(),
            "reason": "the proof of an activation" if purpose == "activate" else "extraData of the quote",
            "purpose": purpose,
            "nonce": nonce,
            **parts,
            "text": text,
            "digest": digest.hex(),
        }


def _volumes(count: int) -> list[str]:
    return [f"attested 0f6e5a3c-0000-4000-8000-{number:012d}\n" for number in range(count)]


def caps() -> Iterator[dict[str, Any]]:
    """Yield texts of caps, and the PCR to which each bank is extended; then bytes that are no texts."""
    header = texts.CAP_HEADER.decode()
    good = {
        "nothing open": [header],
        "two caps without a volume": [header, header],
        "the root, attested": [header, f"{header}attested {_ROOT}\n"],
        "the root, by a passphrase": [f"{header}passphrase {_ROOT}\n"],
        "two volumes": [f"{header}attested {_ROOT}\npassphrase {_HOME}\n"],
        "one UUID twice": [f"{header}attested {_ROOT}\npassphrase {_ROOT}\n"],
        "a text of twenty volumes and one more": [header + "".join(_volumes(20)), header + _volumes(21)[20]],
    }
    for name, parts in good.items():
        encoded = [part.encode() for part in parts]
        assert texts.cap_texts(b"".join(encoded)) == encoded  # noqa: S101 - the grammar reads what is good
        values = {bank: texts.cap_replay(encoded, bank).hex() for bank in _BANKS}
        yield {
            "name": name,
            "reason": "texts in the order of their caps",
            "texts": parts,
            "valid": True,
            "values": values,
        }
    bad = {
        "no header": f"attested {_ROOT}\n",
        "no line end": f"{header}attested {_ROOT}",
        "out of order": f"{header}attested {_HOME}\nattested {_ROOT}\n",
        "upper case": f"{header}attested {_ROOT.upper()}\n",
        "another word": f"{header}opened {_ROOT}\n",
        "a carriage return": f"{header}attested {_ROOT}\r\n",
        "more than 1024 bytes": header + "".join(_volumes(24)),
        "another version": "tang-attest/v2 cap\n",
    }
    for name, text in bad.items():
        try:
            texts.cap_texts(text.encode())
        except ValueError:
            yield {"name": name, "reason": "not the grammar of 10.6", "texts": [text], "valid": False}
        else:
            raise AssertionError(name)
