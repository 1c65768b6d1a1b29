"""The bus of a lone node keeps the contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from appliance.bus.local import LocalBus
from appliance.errors import Unavailable
from appliance.messages import Message, Wanted
from appliance.role import Role
from appliance.store import Store, Transaction, outbox
from appliance.store.schema import metadata
from appliance.testing.bus import ATTEMPTS, BusContract, Listener, MakeBus
from appliance.world import World


class TestLocalBus(BusContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        made = Store(f"sqlite:///{tmp_path / 'store.sqlite'}", World())
        metadata.create_all(made.engine)
        yield made
        made.close()

    @pytest.fixture
    def make_bus(self, store: Store) -> MakeBus:
        return lambda: LocalBus(Store(store.url, World()), World(), attempts=ATTEMPTS, lanes=4)

    def test_a_cast_goes_with_its_transaction(self, store: Store) -> None:
        bus = LocalBus(store, World(), attempts=ATTEMPTS, lanes=2)
        listener = Listener()
        self.serve(bus, wanted=listener)
        bus.start()
        try:
            with pytest.raises(RuntimeError):
                store.transaction(_cast_and_fail)
            store.transaction(lambda tx: tx.cast("controller", Wanted(instance_id="i-2")))
            assert listener.wait_for(1) == [Wanted(instance_id="i-2")]
            assert bus.wait_quiet(10)
            assert store.read(outbox.pending) == []
        finally:
            bus.stop(10)

    def test_what_another_process_cast_is_found(self, store: Store) -> None:
        bus = LocalBus(store, World(), attempts=ATTEMPTS, lanes=2)
        listener = Listener()
        self.serve(bus, wanted=listener)
        bus.start()
        try:
            other = Store(store.url, World())
            other.transaction(lambda tx: tx.cast("controller", Wanted(instance_id="i-1")))
            listener.wait_for(1)
        finally:
            bus.stop(10)

    def test_answers_that_never_come_hold_up_nobody(self, store: Store) -> None:
        bus = LocalBus(store, World(), attempts=ATTEMPTS, lanes=2)
        begun, may_go_on = threading.Event(), threading.Event()

        def dawdle(question: Message) -> Message:
            begun.set()
            may_go_on.wait(60)
            return question

        for topic in ("one", "two", "three"):
            bus.serve(Role(name=topic, topic=topic, calls={Wanted: dawdle}))
        bus.start()
        try:
            for topic in ("one", "two", "three"):
                begun.clear()
                ask = partial(bus.call, topic, Wanted(instance_id="i-1"), Wanted, 60)
                threading.Thread(target=ask, daemon=True).start()
                assert begun.wait(10)
            began = time.monotonic()
            bus.stop(0.5)
            assert time.monotonic() - began < 5
            late = [thread for thread in threading.enumerate() if "-call-" in thread.name]
            assert len(late) >= 3
            assert all(thread.daemon for thread in late), "the interpreter would wait for them"
            with pytest.raises(Unavailable, match="it was stopped"):
                bus.call("one", Wanted(instance_id="i-1"), Wanted, 1)
        finally:
            may_go_on.set()
            bus.stop(10)


def _cast_and_fail(tx: Transaction) -> None:
    tx.cast("controller", Wanted(instance_id="i-1"))
    raise RuntimeError("rolled back")
