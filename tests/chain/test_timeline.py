"""Who may tell what happened to an instance."""

from __future__ import annotations

import msgspec
import pytest

from appliance.messages import Report
from appliance.model import TimelineEntry
from appliance.store import timeline
from tests.chain.harness import Chain

HOSTILE = "00000000-0000-4000-8000-00000000bad1"


@pytest.mark.faults("hostile: hypervisor", quick=True)
@pytest.mark.parametrize("claims_own", [False, True], ids=["in its report", "in anothers"])
def test_a_node_tells_nothing_of_what_it_does_not_hold(chain: Chain, claims_own: bool) -> None:
    victim, own = chain.run_instances(2)
    chain.wait_for("running", victim, own)
    before = chain.read(lambda tx: timeline.of_instance(tx, victim))
    told = TimelineEntry(
        instance_id=victim,
        epoch=1,
        request_id="",
        node="node",
        role="compute",
        name="made-up",
        started_at=1.0,
        duration_ms=1.0,
        causes=("made up",),
    )
    report = Report(
        instance_id=own if claims_own else victim,
        node_id=chain.node.node_id if claims_own else HOSTILE,
        epoch=1,
        seq=0,
        revision=0,
        state="pending",
        entries=(told, msgspec.structs.replace(told, name="once-more", epoch=7)),
    )
    chain.node.bus.cast("controller", report)
    assert chain.bus.wait_quiet(20)
    assert chain.read(lambda tx: timeline.of_instance(tx, victim)) == before
    chain.assert_clean()
