"""Nodes' buses on one virtual host, each with the login that a cluster gives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.bus.amqp import AmqpBus
from appliance.bus.guard import Signer
from appliance.messages import Message
from appliance.role import Role
from appliance.store import Store, migrations
from appliance.testing.bus import ATTEMPTS
from appliance.world import World
from tests.bus.signer import TestSigner
from tests.services.rabbitmq import VirtualHost

CONTROL, HYPERVISOR, OTHER = "n0", "n1", "n2"


class Places:
    """Makes buses, and stops them in the end."""

    def __init__(self, vhost: VirtualHost, folder: Path) -> None:
        self.vhost = vhost
        self._folder = folder
        self._made: list[AmqpBus] = []
        self._stores: list[Store] = []

    def store(self) -> Store:
        """Open the store that all control nodes share."""
        store = Store(f"sqlite:///{self._folder / 'store.sqlite'}", World())
        if not self._stores:
            migrations.upgrade(store)
        self._stores.append(store)
        return store

    def control(self, node_id: str = CONTROL, *, is_signed: bool = True) -> AmqpBus:
        """Make the bus of a control node."""
        return self.bus(
            node_id,
            self.vhost.admit(node_id, is_control=True),
            store=self.store(),
            signer=TestSigner(node_id) if is_signed else None,
        )

    def hypervisor(self, node_id: str = HYPERVISOR) -> AmqpBus:
        """Make the bus of a hypervisor, which cannot sign."""
        url = self.vhost.admit(node_id, is_control=False)
        signer = TestSigner(node_id)
        return self.bus(node_id, url, store=None, signer=signer, declares=False)

    def bus(
        self,
        node_id: str,
        url: str,
        *,
        store: Store | None,
        signer: Signer | None,
        declares: bool = True,
        world: World | None = None,
    ) -> AmqpBus:
        """Make a bus with a login of one's own."""
        bus = AmqpBus(
            [url],
            world or World(),
            store=store,
            node_id=node_id,
            attempts=ATTEMPTS,
            lanes=4,
            signer=signer,
            declares=declares,
        )
        self._made.append(bus)
        return bus

    def close(self) -> None:
        """Stop all."""
        stops = [threading.Thread(target=lambda bus=bus: bus.stop(10)) for bus in self._made]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        for store in self._stores:
            store.close()


@contextmanager
def places_in(vhost: VirtualHost, folder: Path) -> Iterator[Places]:
    """Make buses for a while."""
    made = Places(vhost, folder)
    try:
        yield made
    finally:
        made.close()


def serve(
    bus: AmqpBus,
    topic: str,
    *,
    group: str = "",
    casts: dict[type[Message], Callable[..., None]] | None = None,
    calls: dict[type[Message], Callable[..., Message]] | None = None,
    hears: dict[type[Message], Callable[..., None]] | None = None,
) -> None:
    """Let a role take messages."""
    bus.serve(
        Role(
            name=topic.partition(".")[0],
            topic=topic,
            group_topic=group,
            casts=casts or {},
            calls=calls or {},
            hears=hears or {},
        )
    )
