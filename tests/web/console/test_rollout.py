"""A rollout on the page of its policy: its bar and its states say whom it reaches, and that it was stopped."""

from __future__ import annotations

from dataclasses import replace

from tang_attest.protocol.changes.rollout import Rollout
from tang_attest.service.policies.rollouts import RolloutTerms
from tang_attest.web.console.views.policy import picture
from tests.attester import Attester
from tests.server import Server
from tests.store.samples import NOW
from tests.web.console.conftest import Enter


async def start(server: Server, attester: Attester, share: int = 5000) -> Rollout:
    """Begin a rollout of another value of PCR 4 under the policy ``pi-b``."""
    await server.enroll(attester)
    policy = await server.store.policies.get_policy("pi-b")
    values = {str(pcr): value.hex() for pcr, value in policy.states[0].values.items()} | {"4": "44" * 32}
    changes = server.installation.policy_changes
    change = await changes.parse("pi-b", {"add": [{"label": "image-2", "values": values}]})
    terms = RolloutTerms("november", share=share, label=None, limit=2)
    return await server.installation.rollouts.start("pi-b", change, terms)


async def test_a_running_rollout(server: Server, enter: Enter) -> None:
    """Its state counts for the machines that it has reached; the page is about no single machine."""
    await start(server, Attester())
    page = await (await enter("viewer")).get("/policies/pi-b")
    assert "It counts for the machines that rollout november has reached." in page.text
    assert "this machine" not in page.text
    assert "For 50 % of the machines" in page.body
    assert 'class="rollout"' in page.body


async def test_a_stopped_rollout_is_not_green(server: Server, enter: Enter) -> None:
    """The bar has the color of what is wrong, and words say the same."""
    await start(server, Attester())
    await server.installation.rollouts.stop("pi-b", "the kiosks do not come back")
    visitor = await enter("viewer")
    page = await visitor.get("/policies/pi-b")
    assert 'class="rollout stopped"' in page.body
    assert "Stopped at 50 % of the machines" in page.body
    assert "the state counts for machines that passed under it only" in page.text
    assert "Stopped because: the kiosks do not come back." in page.text
    sheet = (await visitor.get("/static/console.css")).body
    assert "svg.rollout.stopped .share { fill: var(--bad); }" in sheet


async def test_the_audience_in_words(server: Server) -> None:
    """A share, a label, or both; a share of nothing is not told."""
    rollout = replace(await start(server, Attester()), started_at=NOW)
    counts = {"passed": 1, "refused": 0}
    assert picture(rollout, counts).sentence.startswith("For 50 % of the machines: 1 machine passed")
    both = replace(rollout, label="site=berlin")
    assert "For 50 % of the machines, and those with label site=berlin:" in picture(both, counts).sentence
    assert picture(replace(both, share=0), counts).sentence.startswith("For those with label site=berlin:")
