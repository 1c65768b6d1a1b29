"""Which bus the settings make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from appliance import bus
from appliance.bus.amqp import AmqpBus
from appliance.bus.local import LocalBus
from appliance.config import BusSettings, Config
from appliance.errors import ConfigError
from appliance.store import Store
from appliance.world import World
from tests.bus.test_amqp_faults import wait_well
from tests.services.own import write_certificates
from tests.services.rabbitmq import running


def config(url: str) -> Config:
    return msgspec.structs.replace(Config(), bus=BusSettings(url=url))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'store.sqlite'}", World())


def test_the_settings_decide(store: Store) -> None:
    assert isinstance(bus.open(config("local:"), World(), store, node_id="n"), LocalBus)
    urls = "amqp://c-n:x@b1/v, amqps://c-n:x@b2/v"
    assert isinstance(bus.open(config(urls), World(), None, node_id="n"), AmqpBus)


@pytest.mark.parametrize("url", ["http://x", "local:,amqp://x", "amqp//x", ""])
def test_a_url_of_no_bus(store: Store, url: str) -> None:
    with pytest.raises(ConfigError):
        bus.open(config(url), World(), store, node_id="n")


def test_a_lone_nodes_bus_needs_a_store() -> None:
    with pytest.raises(ConfigError, match="store"):
        bus.open(config("local:"), World(), None, node_id="n")


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    files = bus.TlsFiles(authority=tmp_path / "none.pem")
    with pytest.raises(ConfigError, match=r"none\.pem"):
        bus.open(config("amqps://x"), World(), None, node_id="n", tls=files)


def test_a_lone_node_does_without_pika() -> None:
    program = "import sys, appliance.bus, appliance.bus.local; sys.exit('pika' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.faults("broker: over TLS", quick=True)
def test_a_broker_is_met_over_tls_and_no_other(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        write_certificates(tmp_path / name)
    ours = tmp_path / "ours"
    files = {
        "authority": ours / "authority.pem",
        "certificate": ours / "node.pem",
        "key": ours / "node.key",
    }
    with running(files) as broker:
        vhost = broker.new_vhost()
        url = broker.url(vhost.name, is_tls=True)
        trusting, doubting, nameless = (
            bus.open(
                config(url),
                World(),
                None,
                node_id="n",
                tls=tls,
            )
            for tls in (
                bus.TlsFiles(**files),
                bus.TlsFiles(**{**files, "authority": tmp_path / "theirs" / "authority.pem"}),
                bus.TlsFiles(authority=files["authority"]),
            )
        )
        try:
            assert isinstance(trusting, AmqpBus)
            trusting.start()
            wait_well(trusting)
            for other in (doubting, nameless):
                other.start()
                assert other.well_for_s() == 0
            assert trusting.well_for_s() > 0
        finally:
            trusting.stop(5)
            doubting.stop(5)
            nameless.stop(5)
