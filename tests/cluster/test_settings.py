"""What a cluster has decided overlays a node's own settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.bus.urls import with_login
from appliance.cluster import decided, settings
from appliance.cluster.settings import MemberSettings
from appliance.config import BusSettings, Config, NodeSettings, StoreSettings
from appliance.errors import ConfigError
from appliance.model import Member

BUS = "amqps://h-n1:secret@192.0.2.1:5671/anynode"


def told(**changes: object) -> MemberSettings:
    values: dict[str, object] = {
        "node_id": "n1",
        "node_name": "left",
        "zone": "z-2",
        "roles": ("datapath", "compute"),
        "is_control": False,
        "address": "192.0.2.7",
        "port": 8775,
        "bus_url": BUS,
        "decided": {"node": {"region": "r-1"}, "quota": {"instances": 3}},
    }
    return MemberSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        node=NodeSettings(state_dir=str(tmp_path), name="own"),
        store=StoreSettings(url="postgresql+psycopg://left@over/here", history_days=3),
        bus=BusSettings(lanes=7),
    )


def put(config: Config, what: MemberSettings) -> Config:
    folder = settings.folder_of(config.state_dir)
    folder.mkdir(exist_ok=True)
    settings.write(folder, what)
    return settings.overlay(config)


def test_a_lone_node_keeps_its_own(config: Config) -> None:
    assert settings.overlay(config) is config
    assert not settings.is_member(config)


def test_a_member_goes_by_what_was_decided(config: Config) -> None:
    found = put(config, told())
    assert settings.is_member(config)
    assert (found.node.name, found.node.zone, found.node.region) == ("left", "z-2", "r-1")
    assert found.node.roles == ("datapath", "compute")
    assert (found.cluster.address, found.cluster.port) == ("192.0.2.7", 8775)
    assert (found.bus.url, found.bus.lanes) == (BUS, 7)
    assert (found.quota.instances, found.quota.vcpus) == (3, config.quota.vcpus)
    assert found.store.history_days == 3
    assert found.node.state_dir == config.node.state_dir


def test_a_hypervisor_has_no_store_whatever_its_file_says(config: Config) -> None:
    assert put(config, told()).store.url == ""


def test_a_control_node_checks_the_clusters_own_store(config: Config) -> None:
    url = "postgresql+psycopg://a:b@192.0.2.1:5432/anynode?sslmode=verify-full"
    found = put(config, told(is_control=True, store_url=url))
    pem = settings.folder_of(config.state_dir) / "authority.pem"
    assert found.store.url == f"{url}&sslrootcert={pem}"
    assert put(config, told(is_control=True, store_url=url, store_is_ours=False)).store.url == url


def test_what_this_version_does_not_know_is_left_out(config: Config) -> None:
    newer = {"node": {"region": "r-1", "planet": "mars"}, "moons": {"count": 2}}
    assert put(config, told(decided=newer)).node.region == "r-1"


def test_a_value_that_does_not_fit_is_told(config: Config) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        put(config, told(decided={"quota": {"instances": "many"}}))


def test_a_damaged_file_is_told(config: Config) -> None:
    put(config, told())
    path = settings.folder_of(config.state_dir) / settings.SETTINGS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="damaged"):
        settings.overlay(config)


def test_only_the_owner_may_read_it(config: Config) -> None:
    put(config, told())
    path = settings.folder_of(config.state_dir) / settings.SETTINGS
    assert path.stat().st_mode & 0o777 == 0o600


MEMBER = Member(
    node_id="n1",
    name="left",
    zone="z",
    address="[fd00::7]:8774",
    roles=("compute",),
    is_control=False,
    certificate="",
)


@pytest.mark.parametrize("is_control", [True, False])
def test_only_a_control_node_is_told_of_the_store(config: Config, is_control: bool) -> None:
    bus = BusSettings(url="amqps://c-1:pass%40word@b1/anynode,amqps://c-1:x@b2/anynode")
    whole = Config(store=StoreSettings(url="postgresql+psycopg://a:b@c/d"), bus=bus)
    what = decided.from_config(whole, bus_is_ours=True, store_is_ours=False)
    assert what.bus_urls == "amqps://b1/anynode,amqps://b2/anynode"
    found = decided.settings_of(what, MEMBER, 7, is_control=is_control)
    assert bool(found.store_url) is is_control
    assert (found.address, found.port, found.revision) == ("fd00::7", 8774, 7)
    assert "roles" not in found.decided["node"], "roles are each node's own"


def test_a_login_goes_into_every_url() -> None:
    urls = with_login("amqps://b1:5671/v,amqps://old:pw@b2/v", "h-n1", "a/b@c")
    assert urls == "amqps://h-n1:a%2Fb%40c@b1:5671/v,amqps://h-n1:a%2Fb%40c@b2/v"
