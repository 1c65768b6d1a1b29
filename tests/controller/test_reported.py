"""What a node tells is written as far as there is room for it."""

from __future__ import annotations

import pytest

from appliance.controller import reported
from appliance.errors import InputError
from appliance.messages import Report, decode, encode
from appliance.model import Reason, TimelineEntry
from appliance.world import SystemClock


class FakeClock(SystemClock):
    """A clock that a test puts on."""

    at = 1000.0

    def monotonic(self) -> float:
        return self.at


LONG = "x\0y" * 100_000


def entry(**values: object) -> TimelineEntry:
    usual = {"instance_id": "i-1", "epoch": 1, "request_id": "", "node": "n1", "role": "compute"}
    timed = {"name": "define", "started_at": 1.0, "duration_ms": 2.0}
    return TimelineEntry(**{**usual, **timed, **values})  # type: ignore[arg-type]


def report(**values: object) -> Report:
    usual = {"instance_id": "i-1", "node_id": "n1", "epoch": 1, "seq": 1, "revision": 1}
    return Report(**{"state": "failed", **usual, **values})  # type: ignore[arg-type]


def test_texts_are_cut() -> None:
    causes = (LONG,) * 50
    told = report(
        reason=Reason(code=LONG, message=LONG),
        entries=(entry(name=LONG, outcome=LONG, detail=LONG, causes=causes, request_id=LONG),),
    )
    found = reported.fitting(told)
    assert found.reason
    assert len(found.reason.code) == reported.LONGEST_NAME
    assert len(found.reason.message) == reported.LONGEST_TEXT
    (only,) = found.entries
    assert (len(only.name), len(only.outcome), len(only.detail)) == (64, 16, 1000)
    assert [len(one) for one in only.causes] == [1000] * reported.MOST_CAUSES
    assert len(encode(found)) < 20_000
    assert b"\\u0000" not in encode(found)


def test_what_fits_is_left_as_it_is() -> None:
    told = report(reason=Reason(code="Server.InternalError", message="No."), entries=(entry(),))
    assert reported.fitting(told) == told
    assert reported.fitting(report(reason=None)).reason is None


def test_entries_are_of_this_copy_by_its_own_role_and_not_too_many() -> None:
    others = (entry(instance_id="i-2"), entry(epoch=2), entry(role="scheduler"))
    assert reported.fitting(report(entries=others)).entries == ()
    many = tuple(entry(started_at=float(number)) for number in range(5000))
    assert len(reported.fitting(report(entries=many)).entries) == reported.MOST_ENTRIES


def test_no_instance_has_more_entries_an_hour_than_its_share() -> None:
    clock = FakeClock()
    told = reported.Told(clock)
    batch = tuple(entry(started_at=float(number)) for number in range(90))
    counts = [len(told.take(report(entries=batch))) for _ in range(8)]
    assert sum(counts) == reported.MOST_AN_HOUR
    assert counts[0] == 90
    other = report(instance_id="i-2", entries=batch)
    assert told.take(other) == batch
    clock.at += 3600
    assert len(told.take(report(entries=batch))) == 90


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(InputError):
        reported.fitting(report(state="on fire"))


@pytest.mark.parametrize(
    "values",
    [
        {"instance_id": "i" * 65},
        {"instance_id": "i\0"},
        {"node_id": "n" * 10_000},
        {"epoch": 2**31},
        {"seq": 10**40},
        {"revision": -(10**10)},
        {"request_id": "r" * 65},
        {"state": "s" * 65},
    ],
)
def test_names_and_numbers_without_bounds_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        decode("Report", encode(report(**values)))
