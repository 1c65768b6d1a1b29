"""The bus of a cluster keeps the contract, on a real RabbitMQ and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.bus.amqp import AmqpBus
from appliance.store import Store
from appliance.testing.bus import ATTEMPTS, BusContract, MakeBus
from appliance.world import World
from tests.services.rabbitmq import VirtualHost


class TestAmqpBus(BusContract):
    @pytest.fixture
    def make_bus(self, postgresql_url: str, vhost: VirtualHost) -> Iterator[MakeBus]:
        stores: list[Store] = []

        def make() -> AmqpBus:
            stores.append(Store(postgresql_url, World()))
            return AmqpBus(
                [vhost.url],
                World(),
                store=stores[-1],
                node_id="n1",
                attempts=ATTEMPTS,
                lanes=4,
            )

        yield make
        for store in stores:
            store.close()
