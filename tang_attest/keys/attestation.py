"""Attestation keys in a TPM that this machine reaches: one is made, or found by its public area.

Rules of this module:

* No tpm2_pytss type or exception leaves it: failures raise ``tpm-unreachable``.
* A connection lasts for one question, because a simulator serves one client at a time.
* An object that was made is taken out of the TPM again, except for the persistent key.

Command names are those of the Trusted Platform Module Library, part 3: Commands, revision 1.59.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, Final, TypeVar

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC

from tang_attest.errors import Unavailable

_Answer = TypeVar("_Answer")

#: Seconds for one question: a TPM takes up to a second, and longer behind a resource manager that others use.
LIMIT_S: Final = 20.0
#: The handle that the pin gives its AK too (clevis-pin/lib/clevis-attest-setup-functions).
DEFAULT_HANDLE: Final = 0x81010002
#: TPM2_HT_PERSISTENT, the first byte of persistent handles (part 2, section 7.2).
_PERSISTENT: Final = 0x81000000
_MANY: Final = 254
_TEMPLATE: Final = TPM2B_PUBLIC.parse(
    "ecc256:ecdsa-sha256:null",
    nameAlg=TPM2_ALG.SHA256,
    objectAttributes=TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT,
)
#: The kernel's TPMs, the one with a resource manager first.
_DEVICES: Final = (Path("/dev/tpmrm0"), Path("/dev/tpm0"))


def default_tcti() -> str | None:
    """The TCTI that tpm2-tools use too: that of ``TPM2TOOLS_TCTI``, or this machine's TPM; ``None`` without
    one.

    Not checked: the form of the variable (:func:`tang_attest.protocol.verification.check_reach`).
    """
    if named := os.environ.get("TPM2TOOLS_TCTI"):
        return named
    found = next((device for device in _DEVICES if device.exists()), None)
    return None if found is None else f"device:{found}"


def make_ak(tcti: str) -> bytes:
    """Make a persistent AK at :data:`DEFAULT_HANDLE` or the next free handle, unless it is there; its
    TPM2B_PUBLIC.

    The key is an ECDSA P-256 primary key of the owner hierarchy, so the same TPM makes the same key again
    until it is cleared.  Raises ``tpm-unreachable``, also when the owner hierarchy has a password.
    """

    def make(esapi: ESAPI) -> bytes:
        handle, public, *_ = esapi.create_primary(None, _TEMPLATE, ESYS_TR.OWNER)
        try:
            made, there = bytes(public.marshal()), _read_all(esapi)
            if made not in there.values():
                free = next(number for number in itertools.count(DEFAULT_HANDLE) if number not in there)
                esapi.evict_control(ESYS_TR.OWNER, handle, free)
        finally:
            esapi.flush_context(handle)
        return made

    return _ask(tcti, make)


def find_ak(tcti: str, public: bytes) -> str | None:
    """The persistent handle, such as ``0x81010002``, of the object with the TPM2B_PUBLIC *public*.

    ``None`` when the TPM has no such object.  Raises ``tpm-unreachable``.
    """
    there = _ask(tcti, _read_all)
    return next((f"{handle:#x}" for handle, found in there.items() if found == public), None)


def _read_all(esapi: ESAPI) -> dict[int, bytes]:
    """The TPM2B_PUBLIC of each persistent object, by handle."""
    _, found = esapi.get_capability(TPM2_CAP.HANDLES, _PERSISTENT, _MANY)
    return {int(handle): _read(esapi, handle) for handle in found.data.handles}


def _read(esapi: ESAPI, handle: Any) -> bytes:
    public, _, _ = esapi.read_public(esapi.tr_from_tpmpublic(handle))
    return bytes(public.marshal())


def _ask(tcti: str, question: Callable[[ESAPI], _Answer]) -> _Answer:
    """The answer of the TPM at *tcti* to *question*.  Raises ``tpm-unreachable``, also after :data:`LIMIT_S`."""
    answers: list[_Answer] = []
    failures: list[TSS2_Exception] = []

    def work() -> None:
        try:
            with ESAPI(tcti) as esapi:
                answers.append(question(esapi))
        except TSS2_Exception as error:
            failures.append(error)

    # A command cannot be called off once it is sent, so a TPM that hangs keeps the thread.
    thread = Thread(target=work, name="tpm", daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    if answers:
        return answers[0]
    why = f"does not answer: {failures[0]}" if failures else f"did not answer within {LIMIT_S:g} s"
    raise Unavailable("tpm-unreachable", f"The TPM at {tcti} {why}.")
