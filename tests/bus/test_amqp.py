"""The bus of a cluster keeps the contract, on a real RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.bus.amqp import AmqpBus
from appliance.store import Store
from appliance.store.schema import metadata
from appliance.testing.bus import ATTEMPTS, BusContract, MakeBus
from appliance.world import World
from tests.services.rabbitmq import VirtualHost


class TestAmqpBus(BusContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        made = Store(f"sqlite:///{tmp_path / 'store.sqlite'}", World())
        metadata.create_all(made.engine)
        yield made
        made.close()

    @pytest.fixture
    def make_bus(self, store: Store, vhost: VirtualHost) -> MakeBus:
        return lambda: AmqpBus(
            [vhost.url],
            World(),
            store=Store(store.url, World()),
            node_id="n1",
            attempts=ATTEMPTS,
            lanes=4,
        )
