"""Buckets of tokens: so many at once, then so many per time, in bounded memory."""

from __future__ import annotations

from appliance.throttle import Buckets


def test_so_many_at_once_and_one_more_from_time_to_time() -> None:
    buckets = Buckets(size=3, refill_s=10.0, most=5)
    assert [buckets.take("a", 100.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.is_empty("a", 109.0)
    assert not buckets.is_empty("a", 110.0)
    assert [buckets.take("a", 110.0), buckets.take("a", 110.0)] == [True, False]
    assert not buckets.is_empty("b", 110.0)
    # After a long time it is full, and no more than that.
    assert [buckets.take("a", 1e6) for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_in_vain_costs_nothing() -> None:
    buckets = Buckets(size=1, refill_s=10.0, most=5)
    assert buckets.take("a", 0.0)
    assert not any(buckets.take("a", second) for second in range(1, 10))
    assert buckets.take("a", 10.0)


def test_the_longest_unused_is_forgotten() -> None:
    buckets = Buckets(size=1, refill_s=10.0, most=3)
    for key in ("a", "b", "c", "a", "d"):
        buckets.take(key, 0.0)
    assert len(buckets) == 3
    assert buckets.is_empty("a", 0.0)
    assert not buckets.is_empty("b", 0.0)


def test_memory_is_bounded_whatever_the_keys() -> None:
    buckets = Buckets(size=1, refill_s=10.0, most=100)
    for number in range(10_000):
        buckets.take(("AKIA", f"10.0.0.{number}"), 0.0)
    assert len(buckets) == 100


def test_after_the_clock_was_set_back_a_bucket_begins_empty() -> None:
    buckets = Buckets(size=1, refill_s=10.0, most=5)
    buckets.take("a", 1000.0)
    assert buckets.is_empty("a", 0.0)
    assert not buckets.take("a", 0.0)
    assert buckets.take("a", 10.0)
