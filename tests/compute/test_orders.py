"""What an order means to a node, for every way in which it may hold the instance."""

from __future__ import annotations

import msgspec
import pytest

from appliance.compute.orders import Verdict, judge
from appliance.compute.record import Held, Tombstone, held_by
from appliance.messages import Order
from appliance.model import InstanceSpec

SPEC = InstanceSpec(
    instance_id="i-1",
    project_id="p",
    reservation_id="r-1",
    launch_index=0,
    image_id="ami-1",
    instance_type="t2.nano",
    vcpus=1,
    memory_mib=512,
    zone="z",
    ports=(),
    block_devices=(),
)


def order(verb: str, epoch: int = 2, revision: int = 5, adopts: int = 0) -> Order:
    return Order(
        instance_id="i-1",
        epoch=epoch,
        revision=revision,
        verb=verb,
        adopts_epoch=adopts,
        spec=SPEC if verb == "run" else None,
    )


def held(verb: str, state: str, epoch: int = 2, revision: int = 5, **values: object) -> Held:
    return Held(
        instance_id="i-1",
        epoch=epoch,
        revision=revision,
        verb=verb,
        state=state,
        **{"spec": SPEC, "is_kept": True, **values},  # type: ignore[arg-type]
    )


RUNNING, STOPPED = held("run", "running"), held("stop", "stopped")
BUILDING = held("run", "working", is_kept=False)
STOPPING, GOING = held("stop", "working"), held("remove", "working")
OFF = held("run", "off")
FOUND = held("run", "running", revision=0, spec=None)

FORCED_STOP = msgspec.structs.replace(order("stop"), is_forced=True)

CASES = [
    # nothing is here
    (order("run"), None, Verdict.WORK),
    (order("stop"), None, Verdict.WORK),
    (order("remove"), None, Verdict.REPORT_GONE),
    (order("reboot"), None, Verdict.DROP),
    # the same again
    (order("run"), RUNNING, Verdict.REPORT_AGAIN),
    (order("run"), BUILDING, Verdict.DROP),
    (order("stop"), STOPPED, Verdict.REPORT_AGAIN),
    (order("stop"), STOPPING, Verdict.DROP),
    (order("remove"), GOING, Verdict.DROP),
    # a newer wish
    (order("stop", revision=6), RUNNING, Verdict.WORK),
    (order("stop", revision=6), BUILDING, Verdict.WORK),
    (order("run", revision=6), STOPPED, Verdict.WORK),
    (order("remove", revision=6), RUNNING, Verdict.WORK),
    (order("remove", revision=6), STOPPING, Verdict.WORK),
    (order("run", revision=6), GOING, Verdict.DROP),
    # an older wish
    (order("stop", revision=4), RUNNING, Verdict.DROP),
    (order("run", revision=4), STOPPED, Verdict.DROP),
    (order("remove", revision=4), RUNNING, Verdict.DROP),
    # it went off by itself, and the order to run is older than that
    (order("run"), STOPPED, Verdict.REPORT_AGAIN),
    (order("run"), STOPPING, Verdict.DROP),
    # after a power cut, and after a lost journal
    (order("run"), OFF, Verdict.WORK),
    (order("stop"), OFF, Verdict.WORK),
    (order("run"), FOUND, Verdict.WORK),
    (order("stop"), FOUND, Verdict.WORK),
    # an older epoch
    (order("run", epoch=1), RUNNING, Verdict.DROP),
    (order("remove", epoch=1, revision=9), RUNNING, Verdict.DROP),
    # a newer epoch
    (order("run", epoch=3, adopts=2), STOPPED, Verdict.WORK),
    (order("run", epoch=4, adopts=3), STOPPED, Verdict.WORK),
    (order("run", epoch=3), STOPPED, Verdict.REMOVE_OLD_FIRST),
    (order("run", epoch=3), RUNNING, Verdict.REMOVE_OLD_FIRST),
    (order("run", epoch=3, adopts=1), STOPPED, Verdict.REMOVE_OLD_FIRST),
    (order("run", epoch=3, adopts=2), BUILDING, Verdict.REMOVE_OLD_FIRST),
    (order("stop", epoch=3), RUNNING, Verdict.WORK),
    (order("remove", epoch=3), RUNNING, Verdict.WORK),
    # urged on
    (FORCED_STOP, held("stop", "working"), Verdict.WORK),
    (FORCED_STOP, held("stop", "working", is_forced=True), Verdict.DROP),
    # reboot
    (order("reboot"), RUNNING, Verdict.WORK),
    (order("reboot"), STOPPED, Verdict.DROP),
    (order("reboot"), BUILDING, Verdict.DROP),
    (order("reboot", epoch=1), RUNNING, Verdict.DROP),
]


@pytest.mark.parametrize(("asked", "here", "verdict"), CASES)
def test_judge(asked: Order, here: Held | None, verdict: Verdict) -> None:
    assert judge(asked, here, None) is verdict


@pytest.mark.parametrize(("epoch", "verdict"), [(2, Verdict.REFUSE), (3, Verdict.WORK)])
def test_a_tombstone_refuses_up_to_its_epoch(epoch: int, verdict: Verdict) -> None:
    tombstone = Tombstone(instance_id="i-1", epoch=2, made_at=1.0)
    assert judge(order("run", epoch=epoch), None, tombstone) is verdict
    assert judge(order("remove", epoch=epoch), None, tombstone) is Verdict.REPORT_GONE


def test_the_record_of_an_order() -> None:
    before = held("stop", "stopped", seq=7)
    same = held_by(order("remove", revision=6), before=before)
    assert (same.verb, same.state, same.seq, same.is_kept) == ("remove", "working", 7, True)
    assert same.spec == SPEC
    newer = held_by(order("run", epoch=3, adopts=2), before=before)
    assert (newer.epoch, newer.seq, newer.is_kept) == (3, 0, True)
    assert not held_by(order("run"), before=None).is_kept
    assert held_by(order("run", adopts=1), before=None).is_kept, "its disk is here"


def test_a_stop_of_what_is_unknown_takes_the_disk_for_an_owners() -> None:
    assert held_by(order("stop"), before=None).is_kept


def test_the_sequence_goes_on_after_a_lost_journal() -> None:
    known = msgspec.structs.replace(order("stop"), seq=9)
    assert held_by(known, before=None).seq == 9
    assert held_by(known, before=held("run", "running", seq=12)).seq == 12


@pytest.mark.parametrize(
    ("verb", "verdict"), [("stop", Verdict.REPORT_GONE), ("reboot", Verdict.DROP)]
)
def test_after_a_removal(verb: str, verdict: Verdict) -> None:
    tombstone = Tombstone(instance_id="i-1", epoch=2, made_at=1.0)
    assert judge(order(verb), None, tombstone) is verdict
