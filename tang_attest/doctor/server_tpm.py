"""Checks of the TPM of the server's machine: it answers, and the keys are its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tang_attest.doctor.finding import Finding, failure, problem, well
from tang_attest.errors import ACTIONS, TangAttestError, Unavailable
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.store import Store

_SUBJECT: Final = "server tpm"


async def look_at_server_tpm(registry: Store, sealed: EncryptedKeys) -> Finding:
    """Check all keys by the Name of the storage key above them, and the newest one by loading it into the
    TPM.
    """
    try:
        keys = [key for key, _ in await registry.keys.list_keys() if sealed.is_in_tpm(key)]
    except TangAttestError as error:
        return failure(_SUBJECT, error)
    if sealed.tpm.tcti is None and not keys:
        return well(_SUBJECT, "off: the exchange keys are in the database, under the key-encryption key")
    try:
        await sealed.check_tpm()
        return await _look_at_keys(keys, sealed)
    except TangAttestError as error:
        return failure(_SUBJECT, error)


async def _look_at_keys(keys: Sequence[EncryptedKey], sealed: EncryptedKeys) -> Finding:
    foreign = 0
    for place, key in enumerate(keys):
        try:
            await sealed.check_key(key, load=place == 0)
        except Unavailable as error:
            if error.code != "server-tpm-foreign":
                raise
            foreign += 1
    if foreign:
        sentence = f"it answers, but {foreign} of {len(keys)} keys are not its own"
        return problem(_SUBJECT, sentence, ACTIONS["server-tpm-foreign"])
    return well(_SUBJECT, f"it answers, and {len(keys)} keys are its own")
