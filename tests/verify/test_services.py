"""What verify says of a cluster's store and broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import seal, verify
from appliance.cluster import brokers, logins, services
from appliance.cluster.management import Access
from appliance.cluster.services import postgresql, rabbitmq
from appliance.config import BusSettings
from appliance.errors import ConfigError
from appliance.store import Transaction
from appliance.verify import facts
from tests.chain.conftest import MakeChain, make_chain  # noqa: F401
from tests.chain.harness import Chain


@pytest.fixture
def chain(make_chain: MakeChain) -> Chain:  # noqa: F811
    made = make_chain()
    made.stop()
    return made


def codes(config: Any) -> dict[str, str]:
    return {one.code: one.subject for one in verify.check(config) if one.code.startswith("N5")}


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(value))
    path.chmod(0o600)


def test_services_that_do_not_run(chain: Chain) -> None:
    for check in (postgresql.check_installed, rabbitmq.check_installed):
        require(check)
    assert codes(chain.config) == {}
    state_dir = chain.config.state_dir
    put(
        services.store_of(state_dir).folder / "service.json",
        postgresql.Settings(address="127.0.0.1", port=1, password="p" * 20),
    )
    assert codes(chain.config) == {"N5.SERVICE_DOWN": "PostgreSQL"}
    put(
        services.broker_of(state_dir).folder / "service.json",
        rabbitmq.Settings(address="127.0.0.1", port=1, admin_port=2, password="p" * 20),
    )
    found = [one.subject for one in verify.check(chain.config) if one.code == "N5.SERVICE_DOWN"]
    assert found == ["PostgreSQL", "RabbitMQ"]
    (services.broker_of(state_dir).folder / "service.json").chmod(0o644)
    open_files = [one for one in verify.check(chain.config) if one.code == "I9.FILE_OPEN"]
    assert [Path(one.subject).name for one in open_files] == ["service.json"]


def require(check: Callable[[], None]) -> None:
    try:
        check()
    except ConfigError as error:
        pytest.skip(str(error))


def test_a_broker_that_does_not_answer(chain: Chain) -> None:
    access = Access(urls=("http://admin:canary-password@127.0.0.1:1",), vhost="anynode")
    sealing = seal.load(seal.key_path(chain.config.state_dir))
    store = facts.open_store(chain.config)
    store.transaction(lambda tx: logins.keep_access(tx, sealing, access))
    store.close()
    assert codes(chain.config) == {}, "a lone node asks no broker"
    away = BusSettings(url="amqp://127.0.0.1:1")
    config = msgspec.structs.replace(chain.config, bus=away)
    found = [one for one in verify.check(config) if one.code == "N5.BROKER_AWAY"]
    assert [one.level for one in found] == ["error"]
    assert "canary-password" not in found[0].message


def test_messages_that_have_not_all_moved(chain: Chain) -> None:
    sealing = seal.load(seal.key_path(chain.config.state_dir))
    source, target = (
        brokers.Broker(
            urls=f"amqp://127.0.0.1:{port}",
            is_ours=False,
            access=Access(
                urls=(f"http://admin:canary-password@127.0.0.1:{port}",), vhost="anynode"
            ),
        )
        for port in (1, 2)
    )
    store = facts.open_store(chain.config)

    def write(move: brokers.Move) -> None:
        def keep(tx: Transaction) -> None:
            logins.keep_access(tx, sealing, target.access)
            brokers.keep_move(tx, sealing, move)

        store.transaction(keep)

    config = msgspec.structs.replace(chain.config, bus=BusSettings(url="amqp://127.0.0.1:2"))
    write(brokers.Move(source=source, target=target))
    [found] = [one for one in verify.check(config) if one.code == "N5.MOVE_UNFINISHED"]
    assert found.level == "warning"
    assert "amqp://127.0.0.1:1 to amqp://127.0.0.1:2" in found.message
    assert "canary-password" not in found.message
    write(brokers.Move(source=source, target=target, is_done=True))
    assert "N5.MOVE_UNFINISHED" not in codes(config)
    store.close()
