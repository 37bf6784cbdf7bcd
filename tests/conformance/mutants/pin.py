"""Mutants of the pin and of the initrd's cap: fragments of a copy of the shell, replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_E: Final = (
    '{"alg":"ECMR","crv":"P-521","kty":"EC",'
    '"d":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB",'
    '"x":"AMaFjga3BATpzZ4-y2YjlbRCnGSBOQU_tSH4KK9ga009uqFLXnfv51ko_h3BJ6L_qN4zSLPBhWpCm_l-fjHC5b1m",'
    '"y":"ARg5KWp4mjvABFyKX7QsfRvZmPVESVebRGgXr70XJz5mLJfuculZXvQmQMVQuQE_rQdhNTxwhqJywkCIvpR2n9Fm"}'
)


@dataclass(frozen=True)
class PinMutant:
    """A fault: its name, a file of the pin (or ``cap``), replacements, and a word of the duties that it breaks."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    duty: str


def _one(name: str, file: str, old: str, new: str, duty: str) -> PinMutant:
    return PinMutant(name, file, ((old, new),), duty)


_DECRYPT: Final = "clevis-decrypt-attest"
_FUNCTIONS: Final = "lib/clevis-attest-functions"
_SETUP: Final = "lib/clevis-attest-setup-functions"

MUTANTS: Final = (
    # --- the exchange ---
    _one(
        "the nonce is not in the quote",
        _DECRYPT,
        """attest_hash 'tang-attest/v1 unlock' "$nonce" "$kid" "$thumbprint\"""",
        """attest_hash 'tang-attest/v1 unlock' "$kid" "$thumbprint\"""",
        "it asks, quotes",
    ),
    _one(
        "X is not in the quote",
        _DECRYPT,
        """"$nonce" "$kid" "$thumbprint\"""",
        """"$nonce" "$kid" "$kid\"""",
        "it asks, quotes",
    ),
    _one(
        "the label is that of a round",
        _DECRYPT,
        "'tang-attest/v1 unlock'",
        "'tang-attest/v1 verify'",
        "it asks, quotes",
    ),
    _one(
        "e is the same each time",
        _DECRYPT,
        r"""< <(exec jose jwk gen -i "{\"alg\":\"ECMR\",\"crv\":\"$crv\"}")""",
        f"< <(printf '%s' '{_E}')",
        "blinded anew",
    ),
    PinMutant(
        "X is not blinded",
        _DECRYPT,
        (
            (
                """blinded=$(jose jwk exc -i '{"alg":"ECMR"}' -l- -r- < <(printf '%s%s' "$epk" "$ephemeral"))""",
                'blinded="${epk%\\}},\\"alg\\":\\"ECMR\\"}"',
            ),
            (
                (
                    "    key=$(jose jwk exc -l- -r- 2>/dev/null < <(\n"
                    """        printf '{"alg":"ECMR","crv":"%s","kty":"EC","x":"%s","y":"%s"}%s' "$crv" "$x" "$y" "$mask"\n"""
                    "    )) || return 1\n"
                ),
                """    printf -v key '{"crv":"%s","kty":"EC","x":"%s","y":"%s"}' "$crv" "$x" "$y"\n""",
            ),
        ),
        "blinded anew",
    ),
    _one(
        "what is not authentic is written",
        _DECRYPT,
        'if ! wait "$child"; then',
        'wait "$child"; if false; then',
        "a header that was changed",
    ),
    # --- answers ---
    _one(
        "it goes on after a refusal",
        _DECRYPT,
        "        4??:*) ;;\n",
        "        4??:*) return 2 ;;\n",
        "a refusal is final",
    ),
    _one(
        "any 403 is final",
        _DECRYPT,
        "    attest_problem || return 2\n",
        "    attest_problem || return 1\n",
        "it goes on to the next address",
    ),
    _one(
        "a Y that opens nothing is final",
        _DECRYPT,
        "        open_with_reply && return 0\n        return 2\n",
        "        open_with_reply && return 0\n        return 1\n",
        "it goes on to the next address",
    ),
    _one(
        "a person reads the server's sentence",
        _DECRYPT,
        '    attest_pcr_names "$p_pcrs"\n    if [[ $p_code == log-missing ]]',
        '    attest_pcr_names "$p_pcrs"\n    sentence=$p_detail\n    if [[ $p_code == log-missing ]]',
        "text of an answer is not shown",
    ),
    _one(
        "redirections are followed",
        _FUNCTIONS,
        "local options=(-q -s -S -g",
        "local options=(-q -L -s -S -g",
        "it follows no redirection",
    ),
    _one(
        "an expired nonce is the end",
        _DECRYPT,
        "for _ in 1 2; do",
        "for _ in 1; do",
        "an expired nonce",
    ),
    _one(
        "challenges are answered again and again",
        _DECRYPT,
        "for _ in 1 2; do",
        "for _ in 1 2 3 4; do",
        "an expired nonce",
    ),
    _one(
        "the selection is always the same",
        _DECRYPT,
        'attest_evidence "$ak" "$selection"',
        'attest_evidence "$ak" sha256:0,2,4,7,15',
        "it quotes the selection",
    ),
    _one(
        "any text is a nonce",
        _DECRYPT,
        r"\"nonce${IS}([A-Za-z0-9_-]{16,128})\"",
        r"\"nonce${IS}([^\"]+)\"",
        "has not its grammar",
    ),
    _one(
        "any version is answered",
        _DECRYPT,
        r"[[ $versions == *\"1.* ]] || return 1",
        "[[ $versions == *.* ]] || return 1",
        "a server of another version",
    ),
    # --- binding ---
    _one(
        "the thumbprint is not compared",
        _SETUP,
        "attest_signed_by() {\n",
        "attest_signed_by() {\n    return 0\n",
        "the token is sent only after",
    ),
    _one(
        "the token is sent before the server is trusted",
        _SETUP,
        '    attest_trust "$1"\n    enrolled=now\n    name=${name:-$default_name}\n',
        "    enrolled=now trust_from=config\n    name=${name:-$default_name}\n",
        "the token is sent only after",
    ),
    _one(
        "signatures are not verified",
        _SETUP,
        '-O /dev/null 2>/dev/null <<<"$1" || return 1\n        signers+=',
        '-O /dev/null 2>/dev/null <<<"$1"\n        signers+=',
        "an advertisement of the device",
    ),
    _one(
        "the content type of a signature is not looked at",
        _SETUP,
        "[[ $cty == jwk-set+json ]] || return 1",
        "[[ -n $cty ]] || return 1",
        "an advertisement of the device",
    ),
    _one(
        "the key may answer to any AK",
        _SETUP,
        '[[ $signed_ak == "$1" ]] && return 0\n',
        "return 0\n",
        "a key that answers to another AK",
    ),
    _one(
        "the proof is of other lines",
        _SETUP,
        """attest_hash 'tang-attest/v1 activate' "$nonce" "$value\"""",
        """attest_hash 'tang-attest/v1 activate' "$value" "$nonce\"""",
        "it enrolls with proof",
    ),
    # --- signed values ---
    _one(
        "signed values go to every server",
        "clevis-decrypt-attest",
        "$evidence${versions:+$signed_values}}}",
        "$evidence$signed_values}}",
        "and not to one of 1.0",
    ),
    _one(
        "as many statements as there are",
        "lib/clevis-attest-signed-functions",
        "if ((count == SIGNED_MAX_STATEMENTS || size + ${#line} > SIGNED_MAX_ALL)); then",
        "if ((count > 99)); then",
        "and not to one of 1.0",
    ),
    # --- the cap ---
    _one(
        "the cap is forgotten",
        "cap",
        'cap "$text" || exit 1\n{ printf "" >',
        '{ printf "" >',
        "the cap extends each bank",
    ),
    _one(
        "the cap's text has no end of line",
        "cap",
        "printf '%s\\n' \"$2\" | TPM2TOOLS_TCTI",
        "printf '%s' \"$2\" | TPM2TOOLS_TCTI",
        "the cap extends each bank",
    ),
    _one("the cap is another PCR", "cap", "pcr=${pcr:-15}", "pcr=${pcr:-14}", "the cap extends each bank"),
    _one(
        "the cap is of one bank",
        "cap",
        '| TPM2TOOLS_TCTI=$1 tpm2 pcrevent -Q "$pcr" >/dev/null',
        '| sha256sum | { read -r hash _; TPM2TOOLS_TCTI=$1 tpm2 pcrextend -Q "$pcr:sha256=$hash"; } >/dev/null',
        "the cap extends each bank",
    ),
)
