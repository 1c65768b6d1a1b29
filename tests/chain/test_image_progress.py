"""A long fetch: as long as bytes come nobody gives it up, and an owner's wish ends it at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from appliance.compute import attempt
from appliance.images.cache import ImageCache
from appliance.images.store import ignore_progress
from appliance.model import Desired, ImageRef
from tests.chain.conftest import MakeChain
from tests.chain.harness import DEADLINE_S, Chain, wait_until

GIVE_UP_S = 1.0


class SlowFetch:
    """A fetch that gets on, or not, until it may end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gets_on = True
        self.begun, self.may_end, self.ended = (threading.Event() for _ in range(3))
        real = ImageCache.fetch

        def fetch(cache: ImageCache, image: ImageRef, *sources: object, **more: object) -> object:
            progress = more.get("progress", ignore_progress)
            assert callable(progress)
            self.begun.set()
            try:
                while not self.may_end.wait(0.02):
                    if self.gets_on:
                        progress(1, image.size_bytes)
            finally:
                self.ended.set()
            return real(cache, image)

        monkeypatch.setattr(ImageCache, "fetch", fetch)
        monkeypatch.setattr(attempt, "PROGRESS_S", 0.2)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowFetch]:
    made = SlowFetch(monkeypatch)
    yield made
    made.may_end.set()


@pytest.fixture
def hasty(make_chain: MakeChain) -> Chain:
    """A node whose controller gives up after a second without progress."""
    limits = {"progress_s": 0.5, "give_up_s": GIVE_UP_S, "sweep_every_s": 0.1}
    return make_chain(controller=limits)


def test_a_fetch_that_gets_on_is_not_given_up(hasty: Chain, slow: SlowFetch) -> None:
    (instance_id,) = hasty.run_instances()
    assert slow.begun.wait(DEADLINE_S)
    began = hasty.get(instance_id).progress_at
    wait_until(lambda: hasty.get(instance_id).progress_at > began + 2.5 * GIVE_UP_S, "bytes count")
    assert hasty.get(instance_id).state.value == "pending"
    slow.may_end.set()
    hasty.wait_for("running", instance_id)
    hasty.assert_clean()


def test_one_that_does_not_is(hasty: Chain, slow: SlowFetch) -> None:
    slow.gets_on = False
    (instance_id,) = hasty.run_instances()
    assert slow.begun.wait(DEADLINE_S)
    wait_until(
        lambda: hasty.get(instance_id).desired is Desired.TERMINATED, "the launch is given up"
    )
    slow.may_end.set()
    hasty.wait_for("terminated", instance_id)
    hasty.assert_clean()


def test_what_is_terminated_meanwhile_is_fetched_no_further(hasty: Chain, slow: SlowFetch) -> None:
    (instance_id,) = hasty.run_instances()
    assert slow.begun.wait(DEADLINE_S)
    hasty.terminate(instance_id)
    assert slow.ended.wait(DEADLINE_S)
    assert not slow.may_end.is_set()
    hasty.wait_for("terminated", instance_id)
    hasty.assert_clean()
