"""A change of a policy as one value: what is added, what is retired, and which rules hold then.

    document --parse_change--> PolicyChange --apply--> the policy as it would be

It is tried on old evidence (``dry_run``), applied at once, or rolled out (``rollout``); these agree, because
each applies this value.  Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tang_attest.errors import Malformed
from tang_attest.protocol.coverage import ENFORCED, BootPart, parse_part
from tang_attest.protocol.policy import ReferencePolicy, check_rules
from tang_attest.protocol.reference_state import Life, ReferenceState, check_label, reference_state
from tang_attest.protocol.rules import RuleSet, parse_rules
from tang_attest.protocol.values.pcr import PcrValues, Selection
from tang_attest.protocol.values.pcr_file import parse_values

_KEYS: Final = ("add", "retire", "rules", "signed")
_STATE_KEYS: Final = {"label", "values"}
_ACCEPT: Final = "accept-uncovered"
_NO_RULES: Final = "none"


@dataclass(frozen=True, slots=True)
class AddedState:
    """A state that the change stages."""

    label: str
    values: PcrValues
    accepted: tuple[BootPart, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """``add`` is staged, ``retire`` names states that count no more.

    ``rules``, when not ``None``, take the place of the policy's rules over event logs; ``drops_rules`` takes
    those away.  ``signed`` are labels of signed values that wait for the rollout of the change, each with those below
    it; they count for everybody without one.
    """

    add: tuple[AddedState, ...] = ()
    retire: tuple[str, ...] = ()
    rules: RuleSet | None = None
    drops_rules: bool = False
    signed: tuple[str, ...] = ()

    @property
    def added(self) -> frozenset[str]:
        """The labels of the states that are added."""
        return frozenset(state.label for state in self.add)

    def states(self) -> tuple[ReferenceState, ...]:
        """The states that are added, staged."""
        return tuple(
            ReferenceState(new.label, new.values, "imported", Life.STAGED, accepted=new.accepted)
            for new in self.add
        )

    def apply(self, policy: ReferencePolicy) -> ReferencePolicy:
        """*policy* as it is with this change, for everybody."""
        return self.narrow(replace(policy, states=(*policy.states, *self.states())))

    def narrow(self, policy: ReferencePolicy) -> ReferencePolicy:
        """*policy*, which has the added states already, without the retired ones and with the rules."""
        states = tuple(
            replace(state, life=Life.RETIRED) if state.label in self.retire else state
            for state in policy.states
        )
        rules = self.rules or (None if self.drops_rules else policy.rules)
        return replace(policy, states=states, rules=rules)

    def dump(self) -> dict[str, object]:
        """JSON-compatible; :func:`load_change` reads it."""
        return {
            "add": [
                {
                    "label": state.label,
                    "values": {str(pcr): value.hex() for pcr, value in sorted(state.values.items())},
                    **({_ACCEPT: [part.value for part in state.accepted]} if state.accepted else {}),
                }
                for state in self.add
            ],
            "retire": list(self.retire),
            "rules": _NO_RULES if self.drops_rules else self.rules and self.rules.as_json(),
            **({"signed": list(self.signed)} if self.signed else {}),
        }


def load_change(fields: Mapping[str, Any]) -> PolicyChange:
    """Rebuild a change from the output of :meth:`PolicyChange.dump`."""
    add, retire, rules = fields["add"], fields["retire"], fields["rules"]
    if not isinstance(add, list) or not isinstance(retire, list):
        raise TypeError("not a dumped change")
    states = tuple(
        AddedState(
            state["label"],
            {int(pcr): bytes.fromhex(value) for pcr, value in state["values"].items()},
            tuple(BootPart(name) for name in state.get(_ACCEPT, ())),
        )
        for state in add
    )
    return PolicyChange(states, tuple(retire), *_rules(rules), tuple(fields.get("signed", ())))


# --- reading ------------------------------------------------------------------------------------------------


def parse_change(document: object, policy: ReferencePolicy) -> PolicyChange:
    """The change that *document* asks of *policy*.

    *document* is what a YAML or JSON reader made: a mapping with ``add``, a list of ``label``, ``values``
    (hex by PCR, or the text of ``tpm2 pcrread``) and perhaps ``accept-uncovered`` (parts of the boot),
    ``retire``, a list of labels, ``rules``, what :func:`parse_rules` reads or ``none``, and ``signed``, a list of
    labels of signed values.

    Raises :class:`Malformed` ``change-invalid``, naming the key: unknown or missing keys, values that do not
    fit the policy's selection or are of a boot that nothing measured, labels that the policy has (``add``) or
    has not (``retire``), and a change of nothing.  Raises ``rules-invalid`` for rules that are none, naming
    the rule, and for rules that the policy cannot ask.
    """
    fields = _mapping(document, "change", set(_KEYS))
    add = tuple(
        _added(entry, f"add[{number}]", policy) for number, entry in enumerate(_list(fields, "add"), 1)
    )
    retire = tuple(_retired(entry, number, policy) for number, entry in enumerate(_list(fields, "retire"), 1))
    rules, drops_rules = _rules(fields.get("rules"))
    if rules is not None:
        check_rules(policy, rules)
    signed = tuple(_signed(entry, number, policy) for number, entry in enumerate(_list(fields, "signed"), 1))
    if not (add or retire or rules or drops_rules or signed):
        raise _invalid("change", "nothing is added, retired, ruled or held back")
    for key, labels in (("add", [state.label for state in add]), ("retire", retire), ("signed", signed)):
        if len(set(labels)) != len(labels):
            raise _invalid(key, "a label is there twice")
    return PolicyChange(add, retire, rules, drops_rules, signed)


def _rules(value: object) -> tuple[RuleSet | None, bool]:
    """The rules that *value* asks for, and whether it asks for none."""
    if value is None or value == _NO_RULES:
        return None, value is not None
    return parse_rules(value), False


def _added(entry: object, where: str, policy: ReferencePolicy) -> AddedState:
    fields = _mapping(entry, where, {*_STATE_KEYS, _ACCEPT})
    for key in sorted(_STATE_KEYS - set(fields)):
        raise _invalid(where, f"'{key}' is missing")
    label = _label(fields["label"], f"{where}.label")
    if any(state.label == label for state in policy.states):
        raise _invalid(f"{where}.label", f"policy '{policy.name}' has a state '{label}' already")
    try:
        values = _values(fields["values"], f"{where}.values", policy.selection)
        reference_state(policy.selection, label, values, "imported", cap_pcr=policy.cap_pcr)
    except Malformed as error:
        if error.code == "change-invalid":
            raise
        raise Malformed("change-invalid", f"{where}.values: {error.sentence}") from None
    return AddedState(label, values, _accepted(fields.get(_ACCEPT), f"{where}.{_ACCEPT}"))


def _accepted(value: object, where: str) -> tuple[BootPart, ...]:
    names = {_ACCEPT: value} if value is not None else {}
    try:
        parts = [parse_part(name) if isinstance(name, str) else None for name in _list(names, _ACCEPT)]
    except Malformed as error:
        raise _invalid(where, error.sentence.rstrip(".")) from None
    if any(part not in ENFORCED for part in parts):
        raise _invalid(where, f"each is one of {', '.join(part.value for part in ENFORCED)}")
    return tuple(part for part in BootPart if part in parts)


def _values(value: object, where: str, selection: Selection) -> dict[int, bytes]:
    if isinstance(value, str):
        return parse_values(value.encode(), selection)
    values = {}
    for key, text in _mapping(value, where, None).items():
        if not key.isdecimal() or not key.isascii():
            raise _invalid(where, f"'{key}' is no PCR")
        try:
            values[int(key)] = bytes.fromhex(text) if isinstance(text, str) else b""
        except ValueError:
            raise _invalid(f"{where}.{key}", "this is no hexadecimal value") from None
    return {pcr: value for pcr, value in values.items() if pcr in selection.pcrs}


def _retired(entry: object, number: int, policy: ReferencePolicy) -> str:
    where = f"retire[{number}]"
    label = _label(entry, where)
    for state in policy.states:
        if state.label == label:
            if state.life is Life.RETIRED:
                raise _invalid(where, f"state '{label}' is retired already")
            return label
    raise _invalid(where, f"policy '{policy.name}' has no state '{label}'")


def _signed(entry: object, number: int, policy: ReferencePolicy) -> str:
    if not policy.signers:
        raise _invalid(f"signed[{number}]", f"policy '{policy.name}' trusts no signer")
    return _label(entry, f"signed[{number}]")


def _label(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _invalid(where, "a label is text; put it in quotes")
    try:
        return check_label(value)
    except Malformed as error:
        raise _invalid(where, error.sentence.rstrip(".")) from None


def _list(fields: Mapping[str, object], key: str) -> list[object]:
    value = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(key, "this is no list")
    return value


def _mapping(value: object, where: str, known: set[str] | None) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _invalid(where, "this is no mapping")
    fields = {str(key): entry for key, entry in value.items()}
    for key in fields:
        if known is not None and key not in known:
            raise _invalid(where, f"unknown key '{key:.60}'; known are {', '.join(sorted(known))}")
    return fields


def _invalid(where: str, problem: str) -> Malformed:
    return Malformed("change-invalid", f"{where}: {problem}.")
