"""Sentences about acts, for the page that asks for a signature."""

from __future__ import annotations

from tang_attest.service.operators import acts
from tang_attest.service.operators.acts import Act
from tang_attest.web.console.views.common import listed


def titled(act: Act) -> tuple[str, str]:  # noqa: PLR0911 - one return for each act
    """Return the title and the sentence that say what *act* does."""
    match act:
        case acts.ApproveBoots():
            return "Approve what was booted", _approval(act)
        case acts.ApproveAnnounced():
            return "Approve an announced state", f"State '{act.label}' counts for policy {act.policy}."
        case acts.Reinstate():
            return "Reinstate a state", f"State '{act.label}' counts for policy {act.policy} again."
        case acts.ResumeDevice():
            return "Resume a machine", f"{act.device} may unlock again."
        case acts.RemoveDevice():
            return (
                "Remove a machine",
                f"{act.device} is forgotten and its keys are destroyed: its disks open by passphrase only, for good.",
            )
        case acts.AllowUnlock():
            return "Allow an unlock", f"{act.device} may unlock for {act.minutes} minutes."
        case acts.IssueToken():
            return "Create an enrollment token", _token(act)
        case acts.TrustPredictions():
            return (
                "Trust announcements",
                f"Values that machines of policy {act.policy} announce count at once, without a person.",
            )


def _approval(act: acts.ApproveBoots) -> str:
    names = [device for device, _ in act.boots]
    whom = (
        f"{listed(names)} may boot"
        if act.only_this_device
        else f"Every machine of the policy of {listed(names)} may boot"
    )
    span = " once" if act.once else f" for {act.minutes} minutes" if act.minutes else ""
    return f"{whom} what was refused{span}."


def _token(act: acts.IssueToken) -> str:
    machines = "One machine" if act.machines == 1 else f"{act.machines:,} machines"
    under = f"under policy {act.policy}" if act.policy else "with a policy that its first quote records"
    return f"{machines} may enroll {under}, for {act.minutes} minutes."
