"""Errors of this program: codes, sentences and actions.

Rules of this module:

* An error is for the person who must act: a stable ``code`` (kebab-case, never reused), one sentence that
  says what happened this time, and one ``action`` that says what to do about it.
* The code, the sentence and the action are the same in the API, on the command line and in the audit record.
  The action belongs to the code; :data:`ACTIONS` is the only place it is written.  The boot console shows the
  code with words of the pin's own (``attest_refusal`` in clevis-attest-functions): text off a wire is not for a prompt.
* *Malformed* evidence (cannot be read) and *refused* evidence (read, and not good enough) are different
  classes, because different people act on them.
* All mismatches are reported at once: :class:`Refused` carries every reason, the most important first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

ACTIONS: Final[dict[str, str]] = {
    # --- the request itself -------------------------------------------------------------------------------
    "request-malformed": "Send the request as docs/protocol.md describes it.",
    "extension-unsupported": "Send the request without the named member; this server speaks an older revision of docs/protocol.md.",
    "request-too-large": "Send less; the limits are in docs/protocol.md.",
    "request-slow": "Send the whole request at once; if that was done, look for a slow or broken network in between.",
    "too-many-requests": "Ask again after the seconds that Retry-After names; docs/how-to/operate.md has the limits.",
    "point-invalid": "Send a point of the named curve as an EC JWK; the disk's header may be damaged.",
    "curve-mismatch": "Use the curve of the device's exchange key, which its advertisement names.",
    "key-unknown": "Check the server's address; if the device was removed, enroll it again and rebind the disk.",
    "not-found": "List what exists, and check the name.",
    # --- evidence: cannot be read ---------------------------------------------------------------------------
    "evidence-required": "Make a quote over the challenge and send the request again with it.",
    "evidence-malformed": "Update the clevis pin, or read the TPM's output: this is not what a TPM 2.0 returns.",
    "evidence-unsupported": "Use an AK with RSASSA, RSAPSS or ECDSA and SHA-256 or better, and a SHA-2 PCR bank.",
    # --- evidence: read, not good enough ----------------------------------------------------------------------
    "nonce-invalid": "Ask this server for a new challenge; the nonce is not one of its own for this purpose and key.",
    "nonce-expired": "Ask for a new challenge and answer it sooner; if it repeats, compare the servers' clocks.",
    "nonce-used": "Ask for a new challenge; if this machine did not retry, look for a replay of its evidence.",
    "signature-invalid": "Check that this disk is in the machine that was enrolled; if its TPM was replaced, enroll again.",
    "quote-invalid": "Make the evidence with TPM2_Quote; a signature over anything else proves nothing here.",
    "qualifying-data-mismatch": "Look for a relay or an outdated pin: the quote was made for another request.",
    "selection-mismatch": "Quote exactly the PCR bank and selection that the challenge names.",
    "pcr-digest-mismatch": "Send the PCR values that were quoted; if it repeats, PCRs change while they are read.",
    "reset-count-backwards": "Check whether the TPM was cleared or replaced; if it was, remove the device and enroll again.",
    "clock-backwards": "Check whether a snapshot of a virtual TPM was restored, or a second machine answers with this TPM.",
    "pcr-mismatch": "If you changed the machine's software, run 'tang-attest approve DEVICE' on the server; if not, find out why it differs.",
    "capped": "Reboot: a running system cannot unlock, only an initrd that has not opened its disks yet.",
    "tpm-not-reset": "Power the machine off and on; if that helps, its reboot does not reset the TPM (docs/how-to/boot/raspberry-pi-os.md).",
    "policy-empty": "Record or approve a reference state for the policy; an empty policy refuses every machine.",
    "state-proposed": "Look at it with 'tang-attest policy staged', then run 'tang-attest policy stage POLICY --announced LABEL' or 'policy retire'.",
    "state-retired": "Boot the newer software, or run 'tang-attest policy reinstate' on the server.",
    "state-expired": "If this boot is wanted all the same, run 'tang-attest approve DEVICE' again on the server.",
    "state-used-up": "If this boot is wanted all the same, run 'tang-attest approve DEVICE' again on the server.",
    "state-not-rolled-out": "Boot the software before it, or widen the rollout with 'tang-attest policy rollout widen'.",
    "statement-malformed": "Look at the file with 'tang-attest values inspect FILE', and sign it again with 'tang-attest values sign'.",
    "statement-untrusted": "If the key is yours, run 'tang-attest policy trust-signer POLICY KEY.pem' on the server; if not, find out who signed it.",
    "statement-out-of-scope": "Sign only the PCRs and labels that 'tang-attest policy signers POLICY' shows for this signer.",
    "statement-elsewhere": "Sign the statement for this policy and its bank; 'tang-attest values inspect FILE' shows those that it names.",
    "statement-mismatch": "Bring the statement of the image that boots; a .pcrsig has to be signed for the phase enter-initrd.",
    "statement-early": "Wait until it counts, or compare the clocks of server and pipeline.",
    "statement-expired": "Sign the values again with 'tang-attest values sign', or approve the boot on the server.",
    "statement-retired": "Boot other software, or run 'tang-attest policy reinstate POLICY LABEL' on the server.",
    "statement-rolled-back": "Boot the newer software; if this one is wanted, sign it with a higher version or approve it on the server.",
    "announcements-full": "Approve or retire what is listed by 'tang-attest policy staged' first.",
    "state-in-use": "Approve what those machines shall boot instead and reboot them first, or use --force.",
    "state-changed": "Look at the states with 'tang-attest policy show', and repeat what still applies.",
    "policy-changed": "Try again; the policy was changed while this evidence was appraised.",
    "key-retired": "Bind the disk again with 'clevis luks attest-regen' on the machine, or run 'tang-attest keys reinstate KID' on the server.",
    "device-suspended": "See the reason with 'tang-attest device show DEVICE' on the server; once resolved, run 'tang-attest device resume DEVICE'.",
    "approval-required": "If this unlock is wanted, run 'tang-attest device allow DEVICE --for 30m' on the server; the machine tries again.",
    "device-stale": "If the machine is in good hands, run 'tang-attest device allow DEVICE --for 30m' on the server; it tries again.",
    "device-unreachable": "See that the machine is on, that clevis-attest-agent runs there, and that 'serve' runs here.",
    "state-learned": "Restart the machine; from the next boot on, this state opens the disk.",
    "cap-missing": "See that the initrd there has the cap's hook, and reboot the machine; then run 'tang-attest device verify DEVICE' on the server.",
    "root-not-attested": "If an operator typed the passphrase, reboot the machine; if not, examine it: another root may run.",
    "root-not-told": "Update the pin there, rebuild the initrd, reboot, and see that clevis-attest-agent runs (docs/how-to/continuous-verification.md).",
    "cap-malformed": "Send the file /run/clevis-attest/cap-events as it is; docs/protocol.md, 10.6, describes it.",
    "log-missing": "Let the machine send its event log with the quote; the policy's rules judge it.",
    "log-replay-mismatch": "Find out what extends the named PCR beside the firmware's log; compare such a PCR by value.",
    "rule-failed": "If you changed the machine's software, change the policy's rules; if not, look at the named event.",
    "ima-missing": "See that the machine has IMA and an agent that sends its list; a TPM reached by --tcti has none.",
    "ima-incomplete": "Send the list from where the next challenge says; clevis-attest-agent does.",
    "ima-malformed": "Copy the list again from /sys/kernel/security/ima/binary_runtime_measurements.",
    "ima-mismatch": "Find out what extends PCR 10 beside IMA; after kexec or hibernation, reboot the machine.",
    "ima-not-allowed": "If you installed that file, allow it with 'tang-attest policy require-ima'; if not, look who did, then reboot.",
    # --- enrollment -------------------------------------------------------------------------------------------
    "token-invalid": "Ask the operator for a token made with 'tang-attest token create'.",
    "token-expired": "Ask the operator for a new token.",
    "token-revoked": "Ask the operator for a new token; this one was withdrawn with 'tang-attest token revoke'.",
    "token-used": "Ask the operator for a new token; if this one was not used by you, remove the device it enrolled.",
    "token-used-up": "Ask the operator for another token; 'tang-attest token list' on the server shows the uses of each.",
    "name-taken": "Choose another name, or remove what has it.",
    "device-exists": "Remove the device that has this TPM key first, or keep using its enrollment.",
    "session-invalid": "Start the enrollment again.",
    "ak-unsuitable": "Create the AK as a restricted signing key, as clevis-attest-enroll does.",
    "ek-malformed": "Read the EK and its certificate from the TPM again; this is not what a TPM 2.0 holds.",
    "ek-mismatch": "Send the certificate of the EK that is sent; was this TPM's certificate copied from another?",
    "ek-expired": "Add the vendor's newer certificate with 'tang-attest ek-root add', or use --allow-unverified-ek.",
    "certificate-malformed": "Give X.509 certificates as PEM or DER, and nothing else in the file.",
    "ek-unsupported": "Use an RSA (2048 bits or more), P-256 or P-384 endorsement key of the TCG EK Credential Profile.",
    "ek-untrusted": "Add the vendor's root or intermediate that is named with 'tang-attest ek-root add', or issue a token with --allow-unverified-ek.",
    "ek-not-registered": "Register the TPM's EK with 'tang-attest device register NAME --ek-sha256 HASH' on the server.",
    "ek-registered": "See 'tang-attest device registered'; take it back with 'tang-attest device unregister' first.",
    "ek-list-invalid": "Correct what is named; nothing was registered (docs/how-to/enroll-a-fleet.md).",
    "activation-failed": "Check that the AK and the EK live in the same TPM.",
    # --- the admin API ----------------------------------------------------------------------------------------
    "admin-token-invalid": "Send a token made with 'tang-attest admin-token create' that is neither expired nor revoked.",
    "transport-insecure": "Use https, with tls_certificate or a proxy on the server's host; then replace the token, which was sent in the clear.",
    "scope-missing": "Use a token that has the scope; 'tang-attest admin-token list' shows the scopes of each.",
    "policy-not-granted": "Use a token that is for this policy, or one that is not limited to policies.",
    "method-not-allowed": "Use a method that the answer's Allow header names; docs/protocol.md and /admin/v1/openapi.json have them all.",
    "encoding-unsupported": "Send the body as it is, without compression and without the header Content-Encoding.",
    "media-type-unsupported": "Send the body as /admin/v1/openapi.json describes it, with its Content-Type.",
    # --- the console ------------------------------------------------------------------------------------------
    "link-invalid": "Open the whole link, or make a new one with 'tang-attest operator reset NAME' on the server.",
    "link-used": "Sign in with the passkey; if you did not register one, run 'tang-attest operator reset NAME' on the server.",
    "link-expired": "Make a new link with 'tang-attest operator reset NAME' on the server, and open it within 15 minutes.",
    "passkey-unknown": "Use the passkey that you registered here; if it is lost, run 'tang-attest operator reset NAME' on the server.",
    "passkey-invalid": "Open the console by its own address and try again with your passkey; nothing was changed.",
    "sign-in-required": "Sign in to the console with your passkey.",
    "origin-foreign": "Open the console at the address in console_url, and do it there again.",
    "form-expired": "Go back, load the page again, and send the form once more.",
    "form-malformed": "Go back, load the page again, and fill in the form as it asks.",
    "check-runs": "Wait until that check is done, and look at its result.",
    "role-missing": "Ask for the role; 'tang-attest operator role NAME --role ROLE' on the server gives it.",
    "act-unknown": "Look at the page of the machine again, and sign anew if it is still wanted.",
    "act-expired": "Sign within five minutes of the question; look at the page again, and sign anew.",
    "act-used": "Look at the page: what was signed is done already; to do it again, sign anew.",
    "act-changed": "Look at the page again, and sign anew if it is still wanted; nothing was changed.",
    "operator-same": "Ask another operator to sign it on the console's page of waiting approvals.",
    "operators-required": "Let the operators sign it in the console (setting console_url); 'tang-attest policy require-operators' on the server sets their number.",
    "act-forged": "Find out who could write to the database and read the kek since then; undo the named change if nobody wanted it.",
    "act-reused": "Find out who could write to the database and read the kek since then; undo the later of the named changes.",
    # --- the operator's commands and settings -----------------------------------------------------------------
    "selection-invalid": "Name a SHA-2 bank and PCRs 0 to 23, such as sha256:0,2,4,7; 16 and 23 are resettable.",
    "values-invalid": "Give one value of the bank's size for each PCR of the policy's selection.",
    "values-known": "Nothing has to be done: these values are approved already.",
    "values-all-zero": "Check whether anything measures this machine's boot; use --force if you accept that nothing does.",
    "uncovered": "Use the selection that it names, or accept the gap with --accept-uncovered PART (docs/how-to/first-machine.md).",
    "change-invalid": "Correct the change as docs/how-to/updates/fleet.md describes it; nothing was changed.",
    "would-refuse": "Approve or record what those machines boot first ('tang-attest policy dry-run' names them), or use --force.",
    "rollout-unfinished": "See 'tang-attest policy rollout status'; finish or abandon that one first.",
    "rollout-changed": "Look at the rollout with 'tang-attest policy rollout status', and repeat what still applies.",
    "key-last": "Make a new one first with 'tang-attest keys rotate', and bind what needs it again.",
    "key-in-use": "Bind those disks again first with 'clevis luks attest-regen' on the machine, or use --force.",
    "key-not-retired": "Nothing has to be done; 'tang-attest keys list' shows the retired keys.",
    "signer-unsuitable": "Give another key or other PCRs as the message says; 'tang-attest policy trust-signer --help' explains them.",
    "signer-unsafe": "Add PCR 7 with Secure Boot, or PCR 4, to the policy ; docs/threat-model.md says why, and --force accepts the gap.",
    "policy-in-use": "Move or remove those machines with 'tang-attest device move', and revoke those tokens; then repeat.",
    "policy-same": "Nothing has to be done; 'tang-attest device show' names the policy.",
    "policy-unfit": "Choose a policy over the same PCRs with the same cap, or enroll the machine again; --force accepts other PCRs of its bank.",
    "not-suspended": "Nothing has to be done; 'tang-attest device list' shows the suspended devices.",
    "tpm-unreachable": "Check the TCTI and the AK's handle: 'tpm2 -T TCTI readpublic -c HANDLE' has to work on this machine.",
    "hook-failed": "Run the hook by hand, with the JSON of the audit record on its stdin; 'serve --hook-dir' says where it is.",
    "webhook-failed": "Check the URL, and the file of 'serve --webhook-secret'; the history has the rounds that were not reported.",
    "notify-failed": "Correct the receiver in the setting notify, then run 'tang-attest notify test --only NAME' on the server.",
    "program-missing": "Install the named program; tpm2 is in tpm2-tools.",
    "observation-missing": "List refused boots with 'tang-attest observation list' on the server; where the machine has none, boot it once.",
    "observation-ambiguous": "Look at each with 'tang-attest observation show ID', then name the one that you mean with --observation ID.",
    "address-taken": "Stop the program that listens there ('ss -ltnp' names it), or change the named setting.",
    "port-privileged": "Choose a port above 1023, or give the service CAP_NET_BIND_SERVICE with 'systemctl edit tang-attest' (docs/how-to/install.md).",
    "setting-invalid": "Correct the named setting or option; docs/settings.md and the command's --help explain it.",
    "state-missing": "Run 'tang-attest init' first.",
    "state-exists": "Use what is there, restore its database with 'tang-attest restore FILE', or name an empty state directory.",
    "schema-old": "Make a backup ('tang-attest backup FILE'), then run 'tang-attest db upgrade'.",
    "schema-new": "Update this program to the version that upgraded the database.",
    "database-moved": "Name the new database in the setting 'database'; to use this one again, run 'tang-attest db reclaim' on the server.",
    "database-not-empty": "Name an empty database; nothing was changed.",
    "backup-damaged": "Use another copy of this backup; nothing was restored.",
    "backup-foreign": "Give the kek of the server that made the backup; if it is that one, the backup was changed.",
    "secret-missing": "Copy the kek of the server that made the backup into the state directory, with mode 0400.",
    "audit-changed": "Compare the named rows with a backup, and find out who could write to the database since then.",
    "audit-cut": "If no older backup was restored since that head was noted, compare the record with a backup.",
    "audit-archived": "Give the archive that has it with --archive FILE.",
    "archive-damaged": "Use another copy of this archive.",
    "archive-foreign": "Give the kek of its time with --kek FILE; if it is that one, the archive was changed.",
    "archive-elsewhere": "Give archives of this record in their order; 'tang-attest audit verify' lists them.",
    "audit-unsealed": "See that 'tang-attest serve' runs; if it did all the time, seals were removed.",
    "file-exists": "Name a file that does not exist yet.",
    "file-unreadable": "Check the path and the permissions.",
    "file-unwritable": "Make room there, or name a file elsewhere; for an input/output error see the kernel's log ('dmesg').",
    "permission-denied": "Run the command with sudo, as root or as the service's user: its state is closed to others.",
    "document-invalid": "Correct the named line; the file is YAML or JSON without anchors, aliases and tags.",
    "rules-invalid": "Correct the named rule; docs/rules.md describes them all.",
    "eventlog-bank-missing": "Name a bank that the firmware logs; 'tang-attest eventlog FILE' lists them.",
    "eventlog-malformed": "Copy the log again from /sys/kernel/security/tpm0/binary_bios_measurements.",
    "key-malformed": "Check the key file: it must be a JWK or the format that the option names.",
    # --- the server itself ------------------------------------------------------------------------------------
    "unavailable": "Try again shortly; the operator finds the cause in the server's log.",
    "registry-tampered": "Find out who wrote to the database with 'tang-attest doctor' and 'audit verify'; then restore a backup.",
    "server-tpm-unavailable": "Try again shortly; the operator looks at the setting server_tpm and the TPM with 'tang-attest doctor'.",
    "server-tpm-foreign": "Give the server the TPM that made the key; if that was cleared or lost, bind again (docs/how-to/server-tpm.md).",
    "internal": "Report it with the request id; the operator finds the cause in the server's log.",
}


def action_for(code: str | None, device: str, policy: str = "POLICY") -> str:
    """Return the action of *code* with the names of *device* and *policy* in it; nothing for an unknown code."""
    return ACTIONS.get(code or "", "").replace(" DEVICE", f" {device}").replace(" POLICY", f" {policy}")


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is not as it should be.

    ``code`` is a key of :data:`ACTIONS`; ``sentence`` is one sentence without secrets, in which characters that
    cannot be printed are spelled out; ``data`` is small and JSON-compatible (for ``pcr-mismatch``: ``{"pcr": 7, "got": "<hex>", "expected": ["<hex>", ...]}``).
    """

    code: str
    sentence: str
    data: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if self.code not in ACTIONS:
            raise KeyError(f"{self.code} has no action in tang_attest.errors.ACTIONS")
        if not self.sentence.isprintable():
            # It may quote what came in, which must neither move a cursor nor be what PostgreSQL refuses: NUL, half a pair.
            spelled = "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.sentence)
            object.__setattr__(self, "sentence", spelled)

    @property
    def action(self) -> str:
        """Action for the person who reads this, one sentence."""
        return ACTIONS[self.code]

    def as_json(self) -> dict[str, object]:
        """``{"code", "sentence", ...data}``, JSON-compatible."""
        return {"code": self.code, "sentence": self.sentence, **dict(self.data)}


class TangAttestError(Exception):
    """Base of every error a person is meant to read."""

    def __init__(self, code: str, sentence: str, **data: object) -> None:
        self.reasons: tuple[Reason, ...] = (Reason(code, sentence, tuple(data.items())),)
        super().__init__(self.sentence)

    @classmethod
    def because(cls, *reasons: Reason) -> Self:
        """An error for *reasons*, the most important first (at least one)."""
        if not reasons:
            raise ValueError("an error needs a reason")
        error = cls(reasons[0].code, reasons[0].sentence)
        error.reasons = reasons
        return error

    @property
    def code(self) -> str:
        """The stable code of the first reason."""
        return self.reasons[0].code

    @property
    def sentence(self) -> str:
        """One sentence: what happened this time."""
        return self.reasons[0].sentence

    @property
    def action(self) -> str:
        """One sentence: what to do about it."""
        return self.reasons[0].action


class Malformed(TangAttestError):
    """The input cannot be read; nothing was decided about it and nothing changed."""


class Refused(TangAttestError):
    """The input was read and is not good enough; carries every reason at once."""


class NotFound(TangAttestError):
    """The named thing does not exist."""


class Conflict(TangAttestError):
    """The state of the world changed first, or forbids it; nothing changed."""


class Unavailable(TangAttestError):
    """Something this program depends on is away; nothing was released, trying again is safe."""
