"""Values that a signer vouches for: what is left of a statement once it was verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tang_attest.protocol.values.pcr import PcrValues


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedState:
    """Values of some PCRs, vouched for by the signer *signer* of a policy.

    ``key`` is the signer's :attr:`~tang_attest.protocol.signed_values.signer.Signer.key_id`, ``version`` the
    number of the statement; a ``.pcrsig`` has none.
    """

    signer: str
    key: str
    label: str
    version: int | None
    values: PcrValues

    def as_json(self) -> dict[str, object]:
        """Return it whole, JSON-compatible; :func:`load_signed_state` reads it."""
        values = {str(pcr): value.hex() for pcr, value in sorted(self.values.items())}
        return {**self.named(), "key": self.key, "values": values}

    def named(self) -> dict[str, object]:
        """Return label, signer, version and PCRs, as the audit record has them."""
        return {
            "label": self.label,
            "signer": self.signer,
            "version": self.version,
            "pcrs": sorted(self.values),
        }

    def __str__(self) -> str:
        version = "" if self.version is None else f", version {self.version}"
        return f"'{self.label}', signed by '{self.signer}'{version}"


def load_signed_state(fields: Mapping[str, object]) -> SignedState:
    """Rebuild a state from the output of :meth:`SignedState.as_json`."""
    values, version = fields["values"], fields["version"]
    if not isinstance(values, dict) or not isinstance(version, int | None):
        raise TypeError("not a dumped signed state")
    return SignedState(
        signer=str(fields["signer"]),
        key=str(fields["key"]),
        label=str(fields["label"]),
        version=version,
        values={int(pcr): bytes.fromhex(value) for pcr, value in values.items()},
    )
