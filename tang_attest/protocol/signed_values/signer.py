"""Signers of a policy: the keys whose statements count for some of its PCRs, and what they said before.

Rules of this module:

* A signer's scope is narrow: the PCRs that the operator named, never PCR 7 and never the cap PCR.  Everything else is
  compared as in any policy.
* The highest version that was permitted is kept for each signer and family of labels.
* A retired label does not count, whichever key signs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from tang_attest.errors import Malformed, Reason
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.reference_state import check_label
from tang_attest.protocol.signed_values import pcrsig
from tang_attest.protocol.signed_values.keys import StatementForm, form_of, key_id, load_key
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection

#: Signers of one policy; two suffice for the rotation of a key.
MAX_SIGNERS: Final = 16
#: Characters of a signer's name and of its label; the labels of its states are longer.
MAX_TEXT: Final = 40
#: Families of labels of which the highest version is kept, for each signer.
MAX_FAMILIES: Final = 64
MAX_RETIRED: Final = 256
#: Statements that a policy keeps for machines that bring none.
MAX_KEPT: Final = 8

#: Secure Boot's state and keys: no signer of values vouches for them.
SECURE_BOOT_PCR: Final = 7
#: The firmware measures here what it starts: the program that measures everything after it.
LOADER_PCR: Final = 4
#: PCRs of programs: any program can extend them to any signed value, beginning at zero.
_MEASURED_BY_PROGRAMS: Final = frozenset(range(8, 16))


class Highest(NamedTuple):
    """The highest version that was permitted, and the time of its first permit."""

    version: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key (DER, SubjectPublicKeyInfo) whose statements count for ``pcrs``.

    ``label`` limits the labels of its statements to itself and those that begin with it and a slash; a ``.pcrsig``
    has no label of its own, and gets one below it.  ``no_rollback`` refuses versions below the ``highest`` of their
    family.
    """

    name: str
    key: bytes
    pcrs: tuple[int, ...]
    label: str | None = None
    no_rollback: bool = False
    highest: Mapping[str, Highest] = field(default_factory=dict)
    added_at: datetime
    added_by: str

    @property
    def form(self) -> StatementForm:
        """Return the form of its statements."""
        return form_of(load_key(self.key))

    @property
    def key_id(self) -> str:
        """Return the SHA-256 of its key in hex."""
        return key_id(self.key)

    def may_label(self, label: str) -> bool:
        """Return True if its statements may have *label*."""
        return self.label is None or covers(self.label, label)

    def beyond(self, state: SignedState) -> Reason | None:
        """Return the reason that *state* is more than it may sign, or None."""
        sentence = None
        if not self.may_label(state.label):
            sentence = f"Signer '{self.name}' may sign labels of '{self.label}' only, not '{state.label}'."
        elif more := sorted(set(state.values) - set(self.pcrs)):
            what = ", ".join(map(str, more))
            sentence = f"Statement '{state.label}' names PCR {what}, which signer '{self.name}' may not sign."
        elif family(state.label) not in self.highest and len(self.highest) >= MAX_FAMILIES:
            sentence = f"Signer '{self.name}' has {MAX_FAMILIES} families of labels already."
        return None if sentence is None else Reason("statement-out-of-scope", sentence)

    def rollback(self, state: SignedState) -> Reason | None:
        """Return the reason that *state* is too old, or None."""
        highest = self.highest.get(family(state.label))
        if (
            not self.no_rollback
            or state.version is None
            or highest is None
            or state.version >= highest.version
        ):
            return None
        sentence = (
            f"Statement '{state.label}' has version {state.version}; "
            f"signer '{self.name}' was permitted with version {highest.version} already."
        )
        return Reason("statement-rolled-back", sentence)

    def superseded(self, created_at: datetime | None) -> bool:
        """Return True if a state approved at *created_at* is older than a version that it must not go back behind."""
        times = [highest.at for highest in self.highest.values()]
        return self.no_rollback and bool(times) and (created_at is None or created_at < max(times))


@dataclass(frozen=True, slots=True)
class Signers:
    """The signers of a policy, the labels that count no more, and the statements that were posted.

    ``held`` are labels that a rollout keeps from the device that is appraised; they are not stored.
    """

    signers: tuple[Signer, ...] = ()
    retired: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    held: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.signers)

    def find(self, name: str) -> Signer | None:
        """Return the signer *name*, or None."""
        return next((signer for signer in self.signers if signer.name == name), None)

    def with_signer(self, signer: Signer) -> Signers:
        """Return these with *signer*.  Raises ``name-taken``, ``signer-unsuitable`` if there are too many."""
        if len(self.signers) >= MAX_SIGNERS:
            raise Malformed("signer-unsuitable", f"A policy has at most {MAX_SIGNERS} signers.")
        return replace(self, signers=(*self.signers, signer))

    def without(self, name: str) -> Signers:
        """Return these without the signer *name*; its statements go with it at the next appraisal."""
        return replace(self, signers=tuple(each for each in self.signers if each.name != name))

    def with_retired(self, label: str) -> Signers:
        """Return these with *label* retired.  Raises ``signer-unsuitable`` if there are too many."""
        if label in self.retired:
            return self
        if len(self.retired) >= MAX_RETIRED:
            sentence = f"A policy has at most {MAX_RETIRED} retired labels; replace the key in place of more."
            raise Malformed("signer-unsuitable", sentence)
        return replace(self, retired=(*self.retired, label))

    def without_retired(self, label: str) -> Signers:
        """Return these with *label* counting again."""
        return replace(self, retired=tuple(each for each in self.retired if each != label))

    def raises(self, state: SignedState) -> bool:
        """Return True if *state* has a version that is higher than any that was permitted."""
        signer = self.find(state.signer)
        if signer is None or state.version is None:
            return False
        highest = signer.highest.get(family(state.label))
        return highest is None or state.version > highest.version

    def raised(self, state: SignedState, at: datetime) -> Signers:
        """Return these after *state* was permitted *at*."""
        if state.version is None or not self.raises(state):
            return self
        risen = {family(state.label): Highest(state.version, at)}
        signers = tuple(
            replace(each, highest={**each.highest, **risen}) if each.name == state.signer else each
            for each in self.signers
        )
        return replace(self, signers=signers)

    def obstacle(self, state: SignedState) -> Reason | None:
        """Return the reason that *state*, which is verified, does not count for this policy, or None."""
        signer = self.find(state.signer)
        if signer is None or signer.key_id != state.key:
            sentence = f"The policy does not trust the key of signer '{state.signer}' any more."
            return Reason("statement-untrusted", sentence)
        return signer.beyond(state) or self._withdrawn(state) or signer.rollback(state)

    def _withdrawn(self, state: SignedState) -> Reason | None:
        if any(covers(label, state.label) for label in self.retired):
            return Reason(
                "statement-retired", f"Label '{state.label}' is retired, with every key that signs it."
            )
        if any(covers(label, state.label) for label in self.held):
            sentence = f"A rollout holds '{state.label}' back, and has not reached this machine."
            return Reason("state-not-rolled-out", sentence)
        return None

    def superseding(self, created_at: datetime | None) -> tuple[Signer, ...]:
        """Return the signers without rollback that take the place of values that were approved at *created_at*."""
        return tuple(signer for signer in self.signers if signer.superseded(created_at))

    def while_running(self) -> Signers:
        """Return these for a machine that booted already: it can go back to nothing, and no rollout holds it back."""
        signers = tuple(replace(signer, no_rollback=False) for signer in self.signers)
        return replace(self, signers=signers, held=())

    def with_those_of(self, boot: Signers) -> Signers:
        """Return these with the signers and the retired labels of *boot*, whose signer counts where a name is in both.

        Statements that were posted to *boot* are for its policy, and stay there.
        """
        others = tuple(each for each in self.signers if boot.find(each.name) is None)
        return replace(self, signers=(*boot.signers, *others), retired=(*self.retired, *boot.retired))

    def as_json(self) -> dict[str, object]:
        """Return what is stored; :func:`load_signers` reads it."""
        return {
            "signers": [_dump(signer) for signer in self.signers],
            "retired": list(self.retired),
            "statements": list(self.statements),
        }


def family(label: str) -> str:
    """Return the family of *label*: the part before its first slash, or nothing.

    Versions of one family are compared.  A label without a slash belongs to the signer's one nameless family.
    """
    return label.partition("/")[0] if "/" in label else ""


def covers(wider: str, label: str) -> bool:
    """Return True if *label* is *wider*, or is below it."""
    return label == wider or label.startswith(f"{wider}/")


def check_signer(signer: Signer, selection: Selection, cap_pcr: int) -> Signer:
    """Return *signer*, if a policy over *selection* can trust it.

    Raises ``signer-unsuitable`` for a scope that is empty, not selected, or has PCR 7 or the cap PCR; for a
    ``.pcrsig`` signer with another scope than PCR 11, another bank than sha256, or ``no_rollback``.
    """
    check_name(signer.name)
    for text in (signer.name, *([] if signer.label is None else [check_label(signer.label)])):
        _require(len(text) <= MAX_TEXT, f"Name and label of a signer have at most {MAX_TEXT} characters")
    _require(bool(signer.pcrs), "Name the PCRs that it may sign")
    _require(list(signer.pcrs) == sorted(set(signer.pcrs)), "PCR numbers are ascending and distinct")
    _require(
        SECURE_BOOT_PCR not in signer.pcrs,
        "No signer may sign PCR 7: it shows that Secure Boot holds, on which every signature rests",
    )
    _require(
        cap_pcr not in signer.pcrs, f"No signer may sign PCR {cap_pcr}: it is the cap, and zero at unlock"
    )
    missing = sorted(set(signer.pcrs) - set(selection.pcrs))
    _require(not missing, f"The policy's selection {selection} has no PCR {', '.join(map(str, missing))}")
    if signer.form is StatementForm.PCRSIG:
        _require(
            signer.pcrs == (pcrsig.PCR,),
            "An RSA key signs .pcrsig, which is about PCR 11 alone; statements take P-256 or Ed25519",
        )
        _require(selection.bank == pcrsig.BANK, "A .pcrsig counts for policies over the bank sha256 only")
        _require(not signer.no_rollback, "A .pcrsig has no version, so nothing tells an older one")
    return signer


def unpinned(signer: Signer, selection: Selection, *, secure_boot: bool) -> Reason | None:
    """Return the reason that values which *signer* signs prove nothing under *selection*, or None.

    *secure_boot* says that Secure Boot is known to hold where the policy permits.  PCRs 8 to 15 are extended by
    programs: a boot of any program can lead from zero to a signed value.  So the policy has to pin the program that
    measures: by PCR 4, where the firmware measures it, or by PCR 7 and Secure Boot.
    """
    extended = sorted(_MEASURED_BY_PROGRAMS & set(signer.pcrs))
    if not extended or LOADER_PCR in selection.pcrs:
        return None
    if SECURE_BOOT_PCR in selection.pcrs and secure_boot:
        return None
    lacking = (
        "nothing shows that Secure Boot is on"
        if SECURE_BOOT_PCR in selection.pcrs
        else f"the policy's selection {selection} has neither PCR 7 nor PCR 4"
    )
    return Reason(
        "signer-unsafe",
        f"PCR {extended[0]} alone proves nothing, because any program can extend it to a signed value: {lacking}.",
    )


def load_signers(fields: Mapping[str, Any] | None) -> Signers:
    """Rebuild signers from the output of :meth:`Signers.as_json`; None is none."""
    if fields is None:
        return Signers()
    return Signers(
        tuple(_load(each) for each in fields["signers"]),
        tuple(fields["retired"]),
        tuple(fields["statements"]),
    )


def _dump(signer: Signer) -> dict[str, object]:
    highest = {name: [version, at.isoformat()] for name, (version, at) in sorted(signer.highest.items())}
    return {
        "name": signer.name,
        "key": b64u(signer.key),
        "pcrs": list(signer.pcrs),
        "label": signer.label,
        "no_rollback": signer.no_rollback,
        "highest": highest,
        "added_at": signer.added_at.isoformat(),
        "added_by": signer.added_by,
    }


def _load(fields: Mapping[str, Any]) -> Signer:
    highest = {
        name: Highest(version, datetime.fromisoformat(at))
        for name, (version, at) in fields["highest"].items()
    }
    return Signer(
        name=fields["name"],
        key=unb64u(fields["key"]),
        pcrs=tuple(fields["pcrs"]),
        label=fields["label"],
        no_rollback=fields["no_rollback"],
        highest=highest,
        added_at=datetime.fromisoformat(fields["added_at"]),
        added_by=fields["added_by"],
    )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise Malformed("signer-unsuitable", f"{sentence}.")
